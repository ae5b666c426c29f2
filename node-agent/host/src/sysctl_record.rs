//! Which kernel parameters were changed, and what they were before: so that a node can be given back as it was.
//!
//! A text file, one parameter a line: path, value before, value after, with tabs between. It is written before the
//! parameter is; what was recorded first stays, however often the agent starts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::SysctlChange;

/// The record in a file.
#[derive(Debug)]
pub struct SysctlRecord {
    path: PathBuf,
    changes: Vec<SysctlChange>,
}

/// The record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlRecordError {
    #[error("{action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path}, line {line}: not three fields with tabs between: remove the file, what it says is lost"
    )]
    Line { path: PathBuf, line: usize },
}

impl SysctlRecord {
    /// The record in a file; empty if there is none.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is none of ours.
    pub fn open(path: &Path) -> Result<Self, SysctlRecordError> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            result => result.map_err(failed("read", path))?,
        };
        let changes = text.lines().enumerate().map(|(index, line)| {
            let fields: Vec<&str> = line.split('\t').collect();
            match fields[..] {
                [file, before, after] => Ok(SysctlChange {
                    path: file.into(),
                    before: before.into(),
                    after: after.into(),
                }),
                _ => Err(SysctlRecordError::Line {
                    path: path.into(),
                    line: index + 1,
                }),
            }
        });
        Ok(Self {
            path: path.into(),
            changes: changes.collect::<Result<_, _>>()?,
        })
    }

    pub fn changes(&self) -> &[SysctlChange] {
        &self.changes
    }

    /// Notes changes that are about to be made. Of a parameter that was changed before, the first value is kept as the
    /// one of before.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn note(&mut self, changes: &[SysctlChange]) -> Result<(), SysctlRecordError> {
        for change in changes {
            match self
                .changes
                .iter_mut()
                .find(|noted| noted.path == change.path)
            {
                Some(noted) => noted.after.clone_from(&change.after),
                None => self.changes.push(change.clone()),
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        let lines = self.changes.iter().map(|change| {
            format!(
                "{}\t{}\t{}\n",
                change.path.display(),
                change.before,
                change.after
            )
        });
        let text: String = lines.collect();
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory).map_err(failed("create", directory))?;
        }
        // A file that is half written would not be read again.
        let new = self.path.with_extension("new");
        fs::write(&new, text).map_err(failed("write", &new))?;
        fs::rename(&new, &self.path).map_err(failed("replace", &self.path))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SysctlRecordError {
    let path = path.to_owned();
    move |source| SysctlRecordError::File {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, before: &str, after: &str) -> SysctlChange {
        SysctlChange {
            path: path.into(),
            before: before.into(),
            after: after.into(),
        }
    }

    #[test]
    fn the_first_value_is_kept_over_starts_and_the_last_one_is_what_we_set() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/sysctls");
        let mut record = SysctlRecord::open(&path).unwrap();
        record
            .note(&[change("/a", "", "61000-63999"), change("/b", "0", "1")])
            .unwrap();
        let mut record = SysctlRecord::open(&path).unwrap();
        record
            .note(&[change("/a", "8080", "8080,61000-63999")])
            .unwrap();
        let record = SysctlRecord::open(&path).unwrap();
        let expected = [change("/a", "", "8080,61000-63999"), change("/b", "0", "1")];
        assert_eq!(record.changes(), expected);
    }

    #[test]
    fn a_file_of_somebody_else_is_refused_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sysctls");
        fs::write(&path, "/a\t0\t1\nhello\n").unwrap();
        let error = SysctlRecord::open(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
