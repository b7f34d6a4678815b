// Mistakes on the command line: one sentence with the value, and what to type instead.
#include <algorithm>
#include <iostream>
#include <numeric>
#include <vector>

#include "command.h"

namespace glimpse {
namespace {

// Letters to insert, delete or replace (Levenshtein).
size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

// What may stand where `word` stood: the command's flags, or the program's commands.
std::vector<std::string> alternatives(const CLI::App& app, bool is_flag) {
  std::vector<std::string> names;
  if (is_flag) {
    for (const CLI::Option* option : app.get_options()) {
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    }
  } else {
    for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  }
  return names;
}

Error unexpected(const CLI::App& app, const std::string& command, std::string word) {
  const bool is_flag = word.rfind('-', 0) == 0;
  const char* what = is_flag ? "flag" : app.get_parent() == nullptr ? "command" : "argument";
  word = word.substr(0, is_flag ? word.find_first_of("= ") : word.find(' '));
  std::string nearest;
  for (const std::string& name : alternatives(app, is_flag)) {
    if (nearest.empty() || distance(word, name) < distance(word, nearest)) nearest = name;
  }
  const std::string help = fmt::format("'{} --help' lists what there is", command);
  const bool is_near = !nearest.empty() && distance(word, nearest) <= 1 + word.size() / 4;
  return {ErrorCode::invalid_argument, fmt::format("'{}' is no {} of '{}'", word, what, command),
          is_near ? fmt::format("did you mean {}? {}", nearest, help) : help};
}

}  // namespace

int report_flags(const CLI::App& program, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) {  // --help, --version
    const int code = program.exit(error);
    std::cout.flush();
    return std::cout.good() ? code : report_output_error();
  }
  const CLI::App* app = &program;
  std::string command = program.get_name();
  for (const CLI::App* chosen : program.get_subcommands()) {
    app = chosen;
    command += " " + chosen->get_name();
  }
  const std::vector<std::string> left = program.remaining();
  const auto kind = static_cast<CLI::ExitCodes>(error.get_exit_code());
  const bool lacks_command = kind == CLI::ExitCodes::RequiredError && app == &program;
  if (kind == CLI::ExitCodes::ExtrasError) {
    const std::string words = error.what();  // "...: LAST ... FIRST"
    report(unexpected(*app, command, words.substr(words.rfind(' ') + 1)));
  } else if (lacks_command && !left.empty()) {
    report(unexpected(*app, command, left.front()));
  } else if (lacks_command) {
    report({ErrorCode::invalid_argument, "a command is missing",
            fmt::format("'{} --help' lists the commands; 'glimpse caption picture.png' describes "
                        "a picture",
                        command)});
  } else {
    report({ErrorCode::invalid_argument, error.what(),
            fmt::format("'{} --help' lists the flags", command)});
  }
  return exit_code(ErrorCode::invalid_argument);
}

}  // namespace glimpse
