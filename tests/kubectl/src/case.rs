//! The file format of a case: a sentence, files, and a transcript of commands with what they print.
//!
//! ```text
//! A Service is exposed.
//! -- web.yaml --
//! (a manifest)
//! -- transcript --
//! $ kubectl apply -f web.yaml
//! deployment.apps/web created
//! $ kubectl get cm none
//! Error from server (NotFound): configmaps "none" not found
//! [exit 1]
//! ```
//!
//! A command is a line for `sh`, in the folder of the case's files; lines that begin with `> ` go on with it. Where a
//! kube-apiserver is known to answer otherwise, a line `[kube-apiserver: WHY]` stands below the output, and below that line what is
//! printed there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const TRANSCRIPT: &str = "transcript";
/// In the place of a reason, until somebody knows it.
pub const UNEXPLAINED: &str = "why?";
/// Above what a kube-apiserver's clients print.
const OTHERWISE: (&str, &str) = ("[kube-apiserver: ", "]");

/// One case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Case {
    /// What the case shows.
    pub sentence: String,
    /// The files by their paths below the case's folder.
    pub files: Vec<(String, String)>,
    pub steps: Vec<Step>,
}

/// One command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub command: String,
    /// What it prints, both streams as they come, and `[exit N]` when it fails.
    pub output: String,
    pub otherwise: Option<Otherwise>,
}

/// A known difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Otherwise {
    pub why: String,
    /// What the command prints before a kube-apiserver.
    pub output: String,
}

/// All files of `cases/`, sorted.
///
/// # Errors
/// When the folder cannot be read or is empty.
pub fn all() -> Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    ensure!(!paths.is_empty(), "{} has no case", folder.display());
    paths.sort();
    Ok(paths)
}

impl Case {
    /// # Errors
    /// When the file cannot be read, or has no transcript.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is no case", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut case = Self::default();
        let mut section = None;
        for line in text.lines() {
            if section != Some(TRANSCRIPT)
                && let Some(name) = header(line)
            {
                section = Some(name);
                if name != TRANSCRIPT {
                    case.files.push((name.to_owned(), String::new()));
                }
                continue;
            }
            match section {
                Some(TRANSCRIPT) => case.add_to_transcript(line)?,
                Some(_) => {
                    let (_, file) = case.files.last_mut().context("a file above its text")?;
                    push_line(file, line);
                }
                None => push_line(&mut case.sentence, line),
            }
        }
        ensure!(
            !case.steps.is_empty(),
            "there is no command below -- {TRANSCRIPT} --"
        );
        Ok(case)
    }

    fn add_to_transcript(&mut self, line: &str) -> Result<()> {
        if let Some(command) = line.strip_prefix("$ ") {
            self.steps.push(Step {
                command: command.to_owned(),
                ..Step::default()
            });
            return Ok(());
        }
        let step = self
            .steps
            .last_mut()
            .with_context(|| format!("{line:?} stands above the first command"))?;
        if let Some(more) = line.strip_prefix("> ")
            && step.output.is_empty()
        {
            step.command.push('\n');
            step.command.push_str(more);
        } else if let Some(otherwise) = &mut step.otherwise {
            push_line(&mut otherwise.output, line);
        } else if let Some(why) = why(line) {
            step.otherwise = Some(Otherwise {
                why: why.to_owned(),
                output: String::new(),
            });
        } else {
            push_line(&mut step.output, line);
        }
        Ok(())
    }

    /// The file's text.
    ///
    /// # Errors
    /// When an output looks like a command, so that the text would be read as something else.
    pub fn render(&self) -> Result<String> {
        let mut text = self.sentence.clone();
        for (name, file) in &self.files {
            text.push_str(&format!("-- {name} --\n{file}"));
        }
        text.push_str(&format!("-- {TRANSCRIPT} --\n"));
        for step in &self.steps {
            text.push_str(&step.render());
        }
        ensure!(
            Self::parse(&text)? == *self,
            "an output has a line that begins as a command does, with `$ ` or `> `"
        );
        Ok(text)
    }

    /// How many times a transcript calls kubectl or helm.
    #[must_use]
    pub fn calls(&self) -> usize {
        let words = self
            .steps
            .iter()
            .flat_map(|step| step.command.split_whitespace());
        words
            .filter(|word| ["kubectl", "helm"].contains(word))
            .count()
    }
}

impl Step {
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!("$ {}\n{}", self.command.replace('\n', "\n> "), self.output);
        if let Some(Otherwise { why, output }) = &self.otherwise {
            let (before, behind) = OTHERWISE;
            text.push_str(&format!("{before}{why}{behind}\n{output}"));
        }
        text
    }

    /// What the command is to print: before our server, or before a kube-apiserver.
    #[must_use]
    pub fn expected(&self, of_reference: bool) -> &str {
        match &self.otherwise {
            Some(otherwise) if of_reference => &otherwise.output,
            _ => &self.output,
        }
    }

    /// Takes for right what was printed.
    pub fn update(&mut self, printed: String, by_reference: bool) {
        if !by_reference {
            self.output = printed;
        } else if printed == self.output {
            self.otherwise = None;
        } else {
            let otherwise = self.otherwise.get_or_insert_with(|| Otherwise {
                why: UNEXPLAINED.to_owned(),
                output: String::new(),
            });
            otherwise.output = printed;
        }
    }
}

fn why(line: &str) -> Option<&str> {
    let (before, behind) = OTHERWISE;
    line.strip_prefix(before)?.strip_suffix(behind)
}

fn header(line: &str) -> Option<&str> {
    line.strip_prefix("-- ")?.strip_suffix(" --")
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "A sentence.\n-- a/b.yaml --\nkind: X\n---\nkind: Y\n-- transcript --\n$ kubectl get x &&\n> true\n-- not a header --\n[exit 1]\n$ helm list\n";

    #[test]
    fn a_case_is_read_and_written_back_as_it_was() {
        let case = Case::parse(TEXT).unwrap();
        assert_eq!(
            case.files,
            [("a/b.yaml".into(), "kind: X\n---\nkind: Y\n".into())]
        );
        assert_eq!(case.steps[0].command, "kubectl get x &&\ntrue");
        assert_eq!(case.steps[0].output, "-- not a header --\n[exit 1]\n");
        assert_eq!(case.calls(), 2);
        assert_eq!(case.render().unwrap(), TEXT);
    }

    #[test]
    fn a_known_difference_is_kept_with_its_reason_until_it_is_gone() {
        let mut case = Case::parse(TEXT).unwrap();
        case.steps[1].update("ours\n".into(), false);
        case.steps[1].update("theirs\n".into(), true);
        let text = case.render().unwrap();
        assert!(text.ends_with("$ helm list\nours\n[kube-apiserver: why?]\ntheirs\n"));
        let text = text.replace("why?", "another list");
        let mut case = Case::parse(&text).unwrap();
        let step = &mut case.steps[1];
        assert_eq!(step.expected(false), "ours\n");
        assert_eq!(step.expected(true), "theirs\n");
        step.update("theirs still\n".into(), true);
        assert_eq!(step.otherwise.as_ref().unwrap().why, "another list");
        step.update("ours\n".into(), true);
        assert_eq!(step.otherwise, None);
        assert_eq!(step.expected(true), "ours\n");
    }

    #[test]
    fn what_is_no_case_is_refused() {
        assert!(Case::parse("A sentence.\n").is_err());
        assert!(Case::parse("-- transcript --\nan output\n$ x\n").is_err());
        let mut case = Case::parse(TEXT).unwrap();
        case.steps[1].output = "$ looks like a command\n".into();
        assert!(case.render().is_err());
    }
}
