//! One agent a pin directory: two would write over each other.
//!
//! The lock is flock(2) on the directory itself, since a bpffs holds no files: it leaves nothing behind, and the kernel
//! takes it from a process that dies.

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::MetadataExt,
    path::Path,
};

use crate::{
    Error,
    load::{file_error, make_pin_dirs},
};

/// Held while it lives.
#[derive(Debug)]
pub struct PinLock {
    _dir: File,
}

impl PinLock {
    /// Takes the lock of a pin directory, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] if another process has it; [`Error::NotBpffs`]; when the directory cannot be opened.
    pub fn acquire(pin_dir: &Path) -> Result<Self, Error> {
        make_pin_dirs(pin_dir)?;
        Self::of_existing(pin_dir)
    }

    /// As [`PinLock::acquire`], of a directory that is there.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] if another process has it; when the directory cannot be opened.
    pub fn of_existing(pin_dir: &Path) -> Result<Self, Error> {
        let dir = File::open(pin_dir).map_err(file_error("open", pin_dir))?;
        match dir.try_lock() {
            Ok(()) => Ok(Self { _dir: dir }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse {
                path: pin_dir.into(),
                owner: owner_of(pin_dir)
                    .map_or_else(|| "another process".into(), |o| o.to_string()),
            }),
            Err(TryLockError::Error(source)) => Err(file_error("lock", pin_dir)(source)),
        }
    }
}

/// The process that has the lock of a pin directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PinOwner {
    pub pid: u32,
    /// Name of its command, if it can be read.
    pub command: String,
}

impl std::fmt::Display for PinOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command)
    }
}

/// Who has the lock of a pin directory, without trying to take it: an agent that starts must not be kept out by a
/// reader. `None` if nobody has, or if its process cannot be seen from here.
pub fn owner_of(pin_dir: &Path) -> Option<PinOwner> {
    let directory = fs::metadata(pin_dir).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = holder(&locks, directory.dev(), directory.ino())?;
    let command = fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "unknown".into(), |name| name.trim().into());
    Some(PinOwner { pid, command })
}

/// The holder of a flock in the text of /proc/locks (proc(5)):
/// `1: FLOCK  ADVISORY  WRITE 571 00:2a:7 0 EOF`, device in hexadecimal, then the inode.
fn holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, _, pid, place, ..] if place == wanted => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_read_from_the_list_of_locks_and_waiters_are_passed_over() {
        let device = libc::makedev(0, 0x2a);
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:2a:7 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 571 00:2a:7 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 600 00:2a:7 0 EOF\n\
            3: FLOCK  ADVISORY  WRITE 12 00:2b:7 0 EOF\n";
        assert_eq!(holder(locks, device, 7), Some(571));
        assert_eq!(holder(locks, device, 8), None);
        assert_eq!(holder("nonsense", device, 7), None);
    }
}
