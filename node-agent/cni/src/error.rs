//! Errors as CNI prints them.

use std::io;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Version;

/// The specification's numbers, and ours above 99.
/// <https://www.cni.dev/docs/spec/#error>
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[repr(u8)]
pub enum Code {
    IncompatibleVersion = 1,
    UnknownContainer = 3,
    InvalidEnvironment = 4,
    Io = 5,
    Decoding = 6,
    InvalidConfiguration = 7,
    /// The runtime should ask again: the agent is starting, or away.
    TryAgainLater = 11,
    /// The answer of STATUS where ADD would fail.
    NotAvailable = 50,
    /// The agent could not carry it out; the message says why.
    Failed = 100,
    /// CHECK found something missing.
    CheckFailed = 101,
}

/// What went wrong, with the way out where there is one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    pub code: Code,
    pub message: String,
    pub details: String,
}

impl CniError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Standard input could not be read.
    #[must_use]
    pub fn reading(error: &io::Error) -> Self {
        Self::new(
            Code::Io,
            "the network configuration could not be read from standard input",
        )
        .with_details(error.to_string())
    }

    /// What goes to standard output, and the exit code. Without a version the newest is named.
    #[must_use]
    pub fn printed(&self, version: Option<&str>) -> (String, ExitCode) {
        let mut text = json!({
            "cniVersion": version.unwrap_or(Version::V1_1_0.text()),
            "code": self.code as u8,
            "msg": self.message,
        });
        if !self.details.is_empty() {
            text["details"] = json!(self.details);
        }
        (format!("{text:#}\n"), ExitCode::FAILURE)
    }
}
