// What makes two pages of the KV cache equal: every token before and in them, and for visual tokens
// the content of their picture, since all placeholders are the same id.
#pragma once

#include "runtime/sequence.h"

namespace glimpse {

/// Extends sequence.page_keys to all full pages of its tokens. Each key is the SHA-256 of the key
/// before it, the page's tokens, and the pictures that reach into the page with where they begin:
/// a server's users cannot craft two prompts that share a key.
void extend_page_keys(Sequence& sequence);

}  // namespace glimpse
