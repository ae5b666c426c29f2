//! Programs of others that the operator names with a flag, so that they stand beside ours.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The program at `path`, by a path that holds wherever a command is run.
///
/// # Errors
///
/// When there is none; names the flag.
pub fn named(flag: &str, path: &Path) -> Result<PathBuf> {
    let found = path
        .canonicalize()
        .with_context(|| format!("{flag} {}", path.display()))?;
    let metadata = found
        .metadata()
        .with_context(|| format!("{flag} {}", path.display()))?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        bail!(
            "{flag} {} is no program: name an executable file, or leave the flag out",
            path.display()
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_program_is_named_with_its_flag() {
        for (path, word) in [
            ("/no/such/flanneld", "No such file"),
            ("/etc", "no program"),
            ("/etc/passwd", "no program"),
        ] {
            let error = named("--flanneld", Path::new(path)).unwrap_err();
            let error = format!("{error:#}");
            assert!(
                error.contains("--flanneld") && error.contains(path) && error.contains(word),
                "{error}"
            );
        }
        assert!(named("--flanneld", Path::new("/bin/sh")).is_ok());
    }
}
