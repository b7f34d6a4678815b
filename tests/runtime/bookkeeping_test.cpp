// Pages, page keys and the visual store: who holds what, who finds what, who gives way.
#include <set>

#include <gtest/gtest.h>

#include "runtime/kv_cache.h"
#include "runtime/page_keys.h"
#include "runtime/picture_cache.h"

namespace glimpse {
namespace {

PageKey key(int value) {
  PageKey result{};
  result[0] = static_cast<uint8_t>(value);
  return result;
}

Sequence sequence_of(std::vector<TokenId> tokens, std::vector<SequencePicture> pictures = {}) {
  Sequence sequence;
  sequence.tokens = std::move(tokens);
  sequence.num_prompt_tokens = sequence.num_tokens();
  sequence.pictures = std::move(pictures);
  return sequence;
}

TEST(KvCache, GivesEveryPageOnceAndThenNone) {
  KvCache cache(5);
  std::set<PageId> pages;
  for (int i = 0; i < 5; ++i) pages.insert(cache.take().value());
  EXPECT_EQ(pages.size(), 5U);
  EXPECT_EQ(cache.take(), std::nullopt);
  EXPECT_EQ(cache.num_available(), 0);
}

TEST(KvCache, FindsPublishedPagesAfterTheirOwnerIsGone) {
  KvCache cache(4);
  const std::vector<PageId> pages = {*cache.take(), *cache.take()};
  cache.publish(pages[0], key(1));
  cache.publish(pages[1], key(2));
  cache.release(pages);
  EXPECT_EQ(cache.num_available(), 4);
  const std::vector<PageKey> keys = {key(1), key(2), key(3)};
  EXPECT_EQ(cache.match(keys), pages);
  EXPECT_EQ(cache.num_referenced(), 2);
}

TEST(KvCache, AMatchStopsAtTheFirstUnknownPage) {
  KvCache cache(4);
  const PageId page = *cache.take();
  cache.publish(page, key(2));
  const std::vector<PageKey> keys = {key(1), key(2)};
  EXPECT_TRUE(cache.match(keys).empty());
  EXPECT_EQ(cache.references(page), 1);
}

TEST(KvCache, EvictsTheEndOfAConversationBeforeItsBeginning) {
  KvCache cache(2);
  const std::vector<PageId> pages = {*cache.take(), *cache.take()};
  cache.publish(pages[0], key(1));
  cache.publish(pages[1], key(2));
  cache.release(pages);
  EXPECT_EQ(cache.take(), pages[1]);
  EXPECT_EQ(cache.match(std::vector<PageKey>{key(1), key(2)}), std::vector<PageId>{pages[0]});
}

TEST(KvCache, EvictsTheLongestUnusedFirst) {
  KvCache cache(2);
  const PageId a = *cache.take();
  const PageId b = *cache.take();
  cache.publish(a, key(1));
  cache.publish(b, key(2));
  cache.release(std::vector<PageId>{b});
  cache.release(std::vector<PageId>{a});
  // A use of b makes a the longest unused.
  cache.release(cache.match(std::vector<PageKey>{key(2)}));
  EXPECT_EQ(cache.take(), a);
}

TEST(KvCache, SharedPagesStayUntilTheirLastUserIsGone) {
  KvCache cache(1);
  const std::vector<PageId> page = {*cache.take()};
  cache.publish(page[0], key(1));
  ASSERT_EQ(cache.match(std::vector<PageKey>{key(1)}), page);
  cache.release(page);
  EXPECT_EQ(cache.take(), std::nullopt);
  cache.release(page);
  EXPECT_EQ(cache.take(), page[0]);
}

TEST(KvCache, OfTwoEqualPagesTheFirstIsFound) {
  KvCache cache(2);
  const PageId a = *cache.take();
  const PageId b = *cache.take();
  cache.publish(a, key(1));
  cache.publish(b, key(1));
  cache.release(std::vector<PageId>{b});
  EXPECT_EQ(cache.match(std::vector<PageKey>{key(1)}), std::vector<PageId>{a});
  EXPECT_EQ(cache.take(), b);
}

TEST(PageKeys, DependOnEveryTokenBefore) {
  std::vector<TokenId> tokens(3 * kKvPageTokens + 5, 7);
  Sequence a = sequence_of(tokens);
  tokens[3] = 8;
  Sequence b = sequence_of(tokens);
  extend_page_keys(a);
  extend_page_keys(b);
  ASSERT_EQ(a.page_keys.size(), 3U);
  for (size_t i = 0; i < 3; ++i) EXPECT_NE(a.page_keys[i], b.page_keys[i]);
}

TEST(PageKeys, AreTheSameUpToTheFirstDifference) {
  std::vector<TokenId> tokens(2 * kKvPageTokens, 7);
  Sequence a = sequence_of(tokens);
  tokens.back() = 8;
  Sequence b = sequence_of(tokens);
  extend_page_keys(a);
  extend_page_keys(b);
  EXPECT_EQ(a.page_keys[0], b.page_keys[0]);
  EXPECT_NE(a.page_keys[1], b.page_keys[1]);
}

TEST(PageKeys, TellPicturesApartThatHaveTheSamePlaceholders) {
  const std::vector<TokenId> tokens(2 * kKvPageTokens, 7);
  Sequence a = sequence_of(tokens, {{.first = 40, .count = 10, .content = key(1)}});
  Sequence b = sequence_of(tokens, {{.first = 40, .count = 10, .content = key(2)}});
  extend_page_keys(a);
  extend_page_keys(b);
  EXPECT_EQ(a.page_keys[0], b.page_keys[0]);
  EXPECT_NE(a.page_keys[1], b.page_keys[1]);
}

TEST(PageKeys, TellApartWhereAPictureBegins) {
  const std::vector<TokenId> tokens(kKvPageTokens, 7);
  Sequence a = sequence_of(tokens, {{.first = 4, .count = 10, .content = key(1)}});
  Sequence b = sequence_of(tokens, {{.first = 5, .count = 10, .content = key(1)}});
  extend_page_keys(a);
  extend_page_keys(b);
  EXPECT_NE(a.page_keys[0], b.page_keys[0]);
}

TEST(PageKeys, GrowWithTheAnswerAsIfItHadBeenThePrompt) {
  Sequence grown = sequence_of(std::vector<TokenId>(kKvPageTokens + 1, 7));
  extend_page_keys(grown);
  grown.tokens.resize(2 * kKvPageTokens, 9);
  extend_page_keys(grown);
  Sequence whole = sequence_of(grown.tokens);
  extend_page_keys(whole);
  EXPECT_EQ(grown.page_keys, whole.page_keys);
}

TEST(PictureCache, FindsAPictureAgainAfterItsUserIsGone) {
  PictureCache cache(100);
  PictureCache::Entry* entry = cache.reserve(key(1), 60);
  entry->is_ready = true;
  cache.release(entry);
  EXPECT_EQ(cache.find(key(1)), entry);
  EXPECT_EQ(cache.find(key(2)), nullptr);
}

TEST(PictureCache, NeverGivesUpAPictureInUse) {
  PictureCache cache(100);
  PictureCache::Entry* entry = cache.reserve(key(1), 60);
  entry->is_ready = true;
  EXPECT_EQ(cache.reserve(key(2), 41), nullptr);
  cache.release(entry);
  EXPECT_NE(cache.reserve(key(2), 41), nullptr);
  EXPECT_FALSE(cache.contains(key(1)));
}

TEST(PictureCache, TheLongestUnusedPictureGivesWay) {
  PictureCache cache(100);
  PictureCache::Entry* a = cache.reserve(key(1), 50);
  PictureCache::Entry* b = cache.reserve(key(2), 50);
  a->is_ready = b->is_ready = true;
  cache.release(a);
  cache.release(b);
  cache.release(cache.find(key(1)));
  ASSERT_NE(cache.reserve(key(3), 20), nullptr);
  EXPECT_TRUE(cache.contains(key(1)));
  EXPECT_FALSE(cache.contains(key(2)));
}

TEST(PictureCache, FillsGapsWithoutOverlap) {
  PictureCache cache(90);
  PictureCache::Entry* a = cache.reserve(key(1), 30);
  PictureCache::Entry* b = cache.reserve(key(2), 30);
  PictureCache::Entry* c = cache.reserve(key(3), 30);
  b->is_ready = true;
  cache.release(b);
  const PictureCache::Entry* d = cache.reserve(key(4), 17);
  ASSERT_NE(d, nullptr);
  EXPECT_EQ(d->first, a->first + a->count);
  EXPECT_LE(d->first + d->count, c->first);
}

TEST(PictureCache, AnAbandonedPictureLeavesNothingBehind) {
  PictureCache cache(100);
  cache.release(cache.reserve(key(1), 100));
  EXPECT_EQ(cache.find(key(1)), nullptr);
  EXPECT_EQ(cache.used(), 0);
}

}  // namespace
}  // namespace glimpse
