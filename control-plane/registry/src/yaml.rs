//! YAML that strangers send.

use std::fmt::Display;

use serde_json::Value;

use crate::errors::{ApiError, Result};

/// The parser looks at all open brackets for each token: without a limit a body of brackets keeps it busy for minutes. More
/// than twice the depth at which any object is refused.
const BRACKETS_MAX: usize = 300;

/// Parses one document.
///
/// # Errors
/// 400 when it is no YAML, when it is nested too deeply, and when its aliases stand for too much.
pub fn parse(bytes: &[u8]) -> Result<Value> {
    let bad =
        |why: &dyn Display| ApiError::bad_request(format!("error converting YAML to JSON: {why}"));
    if brackets_deep(bytes) > BRACKETS_MAX {
        let why = format!("brackets are nested deeper than {BRACKETS_MAX}");
        return Err(bad(&why));
    }
    serde_yaml_ng::from_slice(bytes).map_err(|error| bad(&error))
}

/// How deep the brackets of YAML's flow style are nested. Those in texts count too, if nothing closes them.
fn brackets_deep(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in bytes {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_are_counted_as_they_are_nested() {
        assert_eq!(brackets_deep(b"a: {b: [1, {c: 2}]}\nd: []"), 3);
        assert!(parse(b"a: {b: [1, {c: 2}]}").is_ok());
        let error = parse("[".repeat(301).as_bytes()).unwrap_err();
        assert!(
            error.message.contains("deeper than 300"),
            "{}",
            error.message
        );
    }
}
