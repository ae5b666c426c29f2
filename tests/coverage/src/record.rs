//! The record: one line of JSON for each different request that a test made and that was answered well.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::Request;
use axum::http::header;
use axum::middleware::{Next, from_fn};
use serde::{Deserialize, Serialize};

/// Names the folder of the record; without it nothing is recorded.
pub const VARIABLE: &str = "FAIRLEAD_API_RECORD";

/// One request of a test.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Asked {
    /// The file and the name of the test: `flows::waiting`.
    pub test: String,
    pub method: String,
    pub path: String,
    pub query: String,
    /// Of the body; empty when there is none.
    pub content_type: String,
}

/// A server's own writer of the record.
#[derive(Debug)]
struct Recorder {
    test: String,
    file: Mutex<(File, HashSet<Asked>)>,
}

/// `app`, whose well answered requests are recorded as those of `test`, if the environment asks for a record.
///
/// # Errors
/// When the record cannot be opened.
pub fn record(app: Router, test: &str) -> Result<Router> {
    let Some(folder) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
        return Ok(app);
    };
    let recorder = Arc::new(Recorder::open(&folder, test)?);
    Ok(app.layer(from_fn(move |request: Request, next: Next| {
        let recorder = Arc::clone(&recorder);
        async move {
            let asked = recorder.asked(&request);
            let response = next.run(request).await;
            // An upgrade is answered with 101.
            if response.status().as_u16() < 300 {
                recorder.add(asked);
            }
            response
        }
    })))
}

/// Everything that the record in `folder` holds: the requests, each with the tests that made it.
///
/// # Errors
/// When there is no record, or a line of it cannot be read.
pub fn read(folder: &Path) -> Result<BTreeMap<String, Vec<Asked>>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut tests: BTreeMap<String, Vec<Asked>> = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        for line in text.lines() {
            let asked: Asked = serde_json::from_str(line)
                .with_context(|| format!("{}: {line:?} is no request", path.display()))?;
            tests.entry(asked.test.clone()).or_default().push(asked);
        }
    }
    Ok(tests)
}

impl Recorder {
    fn open(folder: &Path, test: &str) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let suite = suite();
        let path = folder.join(format!("{suite}-{}.jsonl", std::process::id()));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self {
            test: format!("{suite}::{test}"),
            file: Mutex::new((file, HashSet::new())),
        })
    }

    fn asked(&self, request: &Request) -> Asked {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok());
        Asked {
            test: self.test.clone(),
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            content_type: content_type.unwrap_or_default().to_owned(),
        }
    }

    fn add(&self, asked: Asked) {
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, seen) = &mut *held;
        if seen.insert(asked.clone()) {
            let line = serde_json::to_string(&asked).expect("texts are JSON");
            // One write a line: servers of one process share the file.
            file.write_all(format!("{line}\n").as_bytes())
                .expect("the record can be written, as it could be opened");
        }
    }
}

/// The file of the test that runs: the program's name without the hash that cargo adds.
fn suite() -> String {
    let program = std::env::current_exe().unwrap_or_default();
    let name = program.file_stem().unwrap_or_default().to_string_lossy();
    let name = name.rsplit_once('-').map_or(&*name, |(name, _)| name);
    name.to_owned()
}
