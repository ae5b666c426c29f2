//! The file format: a sentence, then `-- NAME --` sections, as Go's txtar has them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};

#[derive(Clone, Debug)]
pub struct Script {
    /// What the case shows.
    pub sentence: String,
    /// By number.
    pub steps: BTreeMap<u32, Step>,
}

#[derive(Clone, Debug, Default)]
pub struct Step {
    pub yaml: String,
    pub delete: String,
    pub maps: String,
}

impl Script {
    /// # Errors
    ///
    /// When the file cannot be read or has a section that is unknown.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("parsing {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut script = Self {
            sentence: String::new(),
            steps: BTreeMap::new(),
        };
        let mut section = &mut script.sentence;
        for line in text.lines() {
            if let Some(name) = line
                .strip_prefix("-- ")
                .and_then(|rest| rest.strip_suffix(" --"))
            {
                let Some((number, kind)) = name.split_once('.') else {
                    bail!("section {name:?} is no N.KIND")
                };
                let number = number
                    .parse()
                    .with_context(|| format!("section {name:?} begins with no number"))?;
                let step: &mut Step = script.steps.entry(number).or_default();
                section = match kind {
                    "yaml" => &mut step.yaml,
                    "delete" => &mut step.delete,
                    "maps" => &mut step.maps,
                    _ => bail!("section {name:?} is neither yaml, delete nor maps"),
                };
                continue;
            }
            section.push_str(line);
            section.push('\n');
        }
        if script.steps.is_empty() {
            bail!("the script has no step");
        }
        Ok(script)
    }

    /// The file's text.
    pub fn render(&self) -> String {
        let mut text = self.sentence.clone();
        for (number, step) in &self.steps {
            for (kind, body) in [("yaml", &step.yaml), ("delete", &step.delete)] {
                if !body.is_empty() {
                    text.push_str(&format!("-- {number}.{kind} --\n{body}"));
                }
            }
            text.push_str(&format!("-- {number}.maps --\n{}", step.maps));
        }
        text
    }
}
