#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "safetensors_file.h"

namespace glimpse::testing {
namespace {

using ::testing::HasSubstr;

std::string error_of(const std::vector<std::byte>& file) {
  try {
    static_cast<void>(parse_safetensors(file, "file.safetensors"));
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}
std::string error_of(const std::string& header, size_t data_bytes) {
  return error_of(safetensors_bytes(header, data_bytes));
}

TEST(Safetensors, GiveNamesShapesAndBytesInPlace) {
  const std::vector<std::byte> file =
      safetensors_bytes(R"({"__metadata__":{"format":"pt"},)"
                        R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
                        R"("b":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                        R"("c":{"dtype":"F8_E4M3","shape":[0,5],"data_offsets":[16,16]}}  )",
                        16);
  const std::vector<StoredTensor> tensors = parse_safetensors(file, "file.safetensors");
  ASSERT_EQ(tensors.size(), 3U);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, DType::bf16);
  EXPECT_EQ(tensors[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(tensors[0].bytes.data(), file.data() + file.size() - 12);
  EXPECT_EQ(tensors[0].num_elements(), 6);
  EXPECT_TRUE(tensors[1].shape.empty());
  EXPECT_EQ(tensors[2].num_elements(), 0);
}

TEST(Safetensors, RefuseATruncatedFile) {
  EXPECT_THAT(error_of(std::vector<std::byte>(5)), HasSubstr("truncated: 5 bytes"));
  std::vector<std::byte> short_header = safetensors_bytes("{}", 0);
  short_header.pop_back();
  EXPECT_THAT(error_of(short_header), HasSubstr("claims 2 bytes, 1 follow"));
  EXPECT_THAT(error_of(R"({"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", 15),
              HasSubstr("tensor 'w' ends at byte 16 of the data, but only 15 are there"));
}

TEST(Safetensors, RefuseAHugeHeader) {
  std::vector<std::byte> file(64, std::byte{0xFF});
  EXPECT_THAT(error_of(file), HasSubstr("the header claims 18446744073709551615 bytes"));
}

TEST(Safetensors, RefuseOverlappingTensorsByName) {
  EXPECT_THAT(error_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                       R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                       12),
              HasSubstr("tensors 'a' and 'b' overlap"));
}

TEST(Safetensors, RefuseANameThatStandsTwice) {
  EXPECT_THAT(error_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                       2),
              HasSubstr("'a' stands twice"));
  EXPECT_THAT(error_of(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
              HasSubstr("'dtype' stands twice"));
}

TEST(Safetensors, RefuseSizesThatContradictTheShape) {
  EXPECT_THAT(error_of(R"({"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8),
              HasSubstr("tensor 'w' has 8 bytes, which its shape and dtype contradict"));
  // 2^62 * 4 is 0 in 64 bits.
  EXPECT_THAT(
      error_of(R"({"w":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0),
      HasSubstr("contradict"));
  EXPECT_THAT(error_of(R"({"w":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}})", 0),
              HasSubstr("impossible number in 'shape': -1"));
  EXPECT_THAT(error_of(R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1),
              HasSubstr("not [begin, end]"));
  EXPECT_THAT(error_of(R"({"w":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1),
              HasSubstr("impossible number"));
}

TEST(Safetensors, NameADtypeThatIsNotKnown) {
  EXPECT_THAT(error_of(R"({"w":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[0,1]}})", 1),
              HasSubstr("unknown dtype F8_E5M2"));
}

TEST(Safetensors, RefuseHeadersThatAreNotHeaders) {
  EXPECT_THAT(error_of("[1]", 0), HasSubstr("not a JSON object"));
  EXPECT_THAT(error_of("{\"a\":", 0), HasSubstr("not JSON"));
  EXPECT_THAT(error_of(R"({"a":3})", 0), HasSubstr("tensor 'a' is not described by an object"));
  EXPECT_THAT(error_of(R"({"a":{"dtype":"U8"}})", 0), HasSubstr("tensor 'a' lacks 'shape'"));
  EXPECT_THAT(error_of(std::string(200000, '['), 0), HasSubstr("nested too deeply"));
}

}  // namespace
}  // namespace glimpse::testing
