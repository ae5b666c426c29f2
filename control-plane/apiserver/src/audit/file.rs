//! Where audit events go: a file that is rotated, or standard output; one line of JSON each.
//!
//! One thread writes. Requests wait when it cannot keep up, so that nothing goes unrecorded.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// Events that may wait for the disk.
const ROOM: usize = 10_000;

/// Where to write, and when to begin a new file (`--audit-log-*` of kube-apiserver).
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// `-`: standard output.
    pub path: PathBuf,
    /// In bytes; a larger file is renamed with the time in its name. 0: never.
    pub max_size: u64,
    /// How many renamed files are kept; 0: all.
    pub max_backups: usize,
    /// How long renamed files are kept; zero: for ever.
    pub max_age: Duration,
}

/// An open log. When it is dropped, everything that was said is written.
#[derive(Debug)]
pub struct Log {
    sender: Option<SyncSender<String>>,
    writer: Option<JoinHandle<()>>,
}

impl Log {
    /// Opens the log.
    ///
    /// # Errors
    /// The file cannot be opened for writing.
    pub fn open(options: FileOptions) -> io::Result<Self> {
        let mut output = Output::open(options)?;
        let (sender, receiver) = sync_channel(ROOM);
        let writer = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || output.run(&receiver))?;
        Ok(Self {
            sender: Some(sender),
            writer: Some(writer),
        })
    }

    /// Writes a line, perhaps a moment later.
    pub fn write(&self, line: String) {
        if let Some(sender) = &self.sender {
            // The writer goes after the last sender.
            let _ = sender.send(line);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so.
            let _ = writer.join();
        }
    }
}

struct Output {
    options: FileOptions,
    sink: Sink,
    size: u64,
    failed: bool,
}

enum Sink {
    Stdout,
    File(BufWriter<File>),
}

impl Output {
    fn open(options: FileOptions) -> io::Result<Self> {
        let (sink, size) = if options.path == Path::new("-") {
            (Sink::Stdout, 0)
        } else {
            let (file, size) = append(&options.path)?;
            (Sink::File(file), size)
        };
        Ok(Self {
            options,
            sink,
            size,
            failed: false,
        })
    }

    fn run(&mut self, lines: &Receiver<String>) {
        while let Ok(line) = lines.recv() {
            let mut result = self.line(&line);
            // What is there already goes out with it.
            for line in lines.try_iter() {
                result = result.and_then(|()| self.line(&line));
            }
            let result = result.and_then(|()| self.flush());
            if let (Err(error), false) = (&result, self.failed) {
                let path = self.options.path.display();
                tracing::error!(%path, %error, "the audit log cannot be written; requests go on");
            }
            self.failed = result.is_err();
        }
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        let length = line.len() as u64 + 1;
        let max = self.options.max_size;
        if max > 0 && self.size > 0 && self.size + length > max {
            self.rotate()?;
        }
        self.size += length;
        match &mut self.sink {
            Sink::Stdout => writeln!(io::stdout().lock(), "{line}"),
            Sink::File(file) => writeln!(file, "{line}"),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Stdout => io::stdout().flush(),
            Sink::File(file) => file.flush(),
        }
    }

    /// Renames the file and begins another.
    fn rotate(&mut self) -> io::Result<()> {
        let Sink::File(file) = &mut self.sink else {
            return Ok(());
        };
        file.flush()?;
        let path = &self.options.path;
        // Only what sorts by time and is valid in a file's name.
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S.%6f");
        let (stem, extension) = parts(path);
        std::fs::rename(
            path,
            path.with_file_name(format!("{stem}-{now}{extension}")),
        )?;
        let (file, size) = append(path)?;
        self.sink = Sink::File(file);
        self.size = size;
        self.remove_old()
    }

    fn remove_old(&self) -> io::Result<()> {
        let FileOptions {
            path,
            max_backups,
            max_age,
            ..
        } = &self.options;
        let (stem, extension) = parts(path);
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let prefix = format!("{stem}-");
        let mut old: Vec<PathBuf> = std::fs::read_dir(folder)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|entry| {
                let name = entry.file_name().and_then(|name| name.to_str());
                name.is_some_and(|n| n.starts_with(&prefix) && n.ends_with(&extension))
            })
            .collect();
        old.sort();
        old.reverse();
        for (at, file) in old.iter().enumerate() {
            let too_many = *max_backups > 0 && at >= *max_backups;
            let age = std::fs::metadata(file)
                .and_then(|m| m.modified())
                .map(|modified| SystemTime::now().duration_since(modified));
            let too_old = !max_age.is_zero() && matches!(age, Ok(Ok(age)) if age > *max_age);
            if too_many || too_old {
                std::fs::remove_file(file)?;
            }
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<(BufWriter<File>, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let size = file.metadata()?.len();
    Ok((BufWriter::new(file), size))
}

/// The file's name before its extension, and the extension with its dot.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| {
        part.map(|p| p.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let extension = match text(path.extension()) {
        extension if extension.is_empty() => extension,
        extension => format!(".{extension}"),
    };
    (text(path.file_stem()), extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_renamed_and_only_so_many_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let options = FileOptions {
            path: folder.path().join("audit.log"),
            max_size: 100,
            max_backups: 2,
            max_age: Duration::ZERO,
        };
        let log = Log::open(options.clone()).unwrap();
        for number in 0..20 {
            log.write(format!("{number:040}"));
        }
        drop(log);
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(names[2], "audit.log");
        let lines = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(lines("audit.log"), format!("{:040}\n{:040}\n", 18, 19));
        assert_eq!(lines(&names[1]), format!("{:040}\n{:040}\n", 16, 17));
        // A log goes on where it was.
        drop(Log::open(options).map(|log| log.write("x".to_owned())));
        assert!(lines("audit.log").ends_with("\nx\n"));
    }
}
