//! Memory of this process that nothing uses any more.

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
