#include "server/http.h"

#include <boost/beast/http/status.hpp>

namespace glimpse {

std::string reason_phrase(int status) {
  const auto text = boost::beast::http::obsolete_reason(
      boost::beast::http::int_to_status(static_cast<unsigned>(status)));
  return {text.data(), text.size()};
}

}  // namespace glimpse
