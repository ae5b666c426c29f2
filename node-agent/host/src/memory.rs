//! How this process gets memory, and what nothing uses any more.

/// Has all threads take memory from one place; to be called before there are any. The C library would give each thread a
/// place of its own, and what one thread frees there the others cannot have: after the first lists that is a fifth of all.
pub fn share_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes no address.
    unsafe {
        // It fails for numbers that it does not know, and this is one of its own.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives the kernel back what was freed. The C library keeps pages that were freed between others, for later; after the
/// first lists, which are large and come once, that is more than all that later changes need.
pub fn give_back_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no address, and the allocator's own locks.
    unsafe {
        // Whether anything was given back is all that it says.
        libc::malloc_trim(0);
    }
}
