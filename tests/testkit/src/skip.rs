//! Saying that a test cannot run here, and why.

/// Prints that the calling test is skipped. For what a kernel or machine lacks, never for a failure.
///
/// ```no_run
/// if !tests_testkit::is_root() {
///     return tests_testkit::skip("needs root");
/// }
/// ```
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    println!("skipped: {}: {reason}", thread.name().unwrap_or("test"));
}

/// Whether this process may make namespaces and load programs.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
