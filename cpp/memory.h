// The arena: 64-byte aligned blocks, kept by size when freed and handed out again, so that a steady state asks the system for
// nothing. Nothing inline: the header is shared by objects compiled for different ISAs.
#pragma once

#include <stddef.h>

namespace rheme {

void* arena_allocate(size_t bytes);  // never null; throws std::bad_alloc; contents undefined
void arena_free(void* block);        // null is fine
size_t arena_bytes();                // taken from the system so far, in use or kept

}  // namespace rheme
