//! `/containerLogs`: a container's log, from Docker's log files.
//!
//! Docker is always asked for the times too. That lets `sinceTime` be exact, where Docker takes whole seconds, and
//! shows where Docker has cut a long line in parts: each part has a time of its own, of which only the first is shown.

use axum::{
    body::Body,
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use bollard::container::LogOutput;
use bytes::Bytes;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};

use super::{Refusal, Server};

/// The parameters of `PodLogOptions` (core/v1), but for the container's name.
#[derive(Debug, Default, PartialEq)]
struct Options {
    follow: bool,
    previous: bool,
    timestamps: bool,
    since: Option<Timestamp>,
    tail: Option<u64>,
    limit: Option<usize>,
}

/// What comes next of a log.
struct Lines {
    options: Options,
    /// By stream: the last part did not end its line.
    unfinished: [bool; 2],
    /// Bytes that may still be sent.
    left: usize,
}

pub(crate) async fn container_logs(
    State(server): State<Server>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    let options = Options::parse(&parameters, Timestamp::now())?;
    let found = server.find(&namespace, &pod).await?;
    let record = found.logged(&container, options.previous)?;
    let since = options.since.map_or(0, Timestamp::as_second);
    let parts = server.runtime.logs(
        &record.id,
        options.follow,
        options.tail,
        i32::try_from(since.max(0)).unwrap_or(i32::MAX),
    );
    let mut lines = Lines::new(options);
    let mut parts = Box::pin(parts);
    // An error here can still be told; one that comes later ends the body.
    let first = match parts.next().await {
        Some(part) => Some(part?),
        None => None,
    };
    let first = futures::stream::iter(first.map(Ok));
    let body = first
        .chain(parts)
        .map(move |part| part.map(|part| lines.next(&part)));
    let body = body.take_while(|part| {
        let more = !matches!(part, Ok(None));
        std::future::ready(more)
    });
    let body = body.map(|part| part.map(Option::unwrap_or_default));
    let plain = [(header::CONTENT_TYPE, "text/plain")];
    Ok((plain, Body::from_stream(body)).into_response())
}

impl Options {
    fn parse(parameters: &[(String, String)], now: Timestamp) -> Result<Self, Refusal> {
        let mut options = Self::default();
        for (name, value) in parameters {
            let wrong = |what| Refusal::bad_request(format!("{name}={value:?}: give {what}"));
            let number = || value.parse::<u64>().map_err(|_| wrong("a number"));
            match name.as_str() {
                "follow" => options.follow = is_set(value),
                "previous" => options.previous = is_set(value),
                "timestamps" => options.timestamps = is_set(value),
                "tailLines" => options.tail = Some(number()?),
                "limitBytes" => {
                    options.limit = Some(usize::try_from(number()?).unwrap_or(usize::MAX))
                }
                "sinceTime" => {
                    options.since =
                        Some(value.parse().map_err(|_| wrong("a time as in RFC 3339"))?);
                }
                "sinceSeconds" => {
                    let ago = i64::try_from(number()?).map_err(|_| wrong("fewer seconds"))?;
                    let since = now.checked_sub(SignedDuration::from_secs(ago));
                    options.since = Some(since.unwrap_or(Timestamp::MIN));
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

/// A flag in a query: present, and neither `0` nor `false`.
pub(crate) fn is_set(value: &str) -> bool {
    !matches!(value, "0" | "false")
}

impl Lines {
    fn new(options: Options) -> Self {
        Self {
            left: options.limit.unwrap_or(usize::MAX),
            options,
            unfinished: [false; 2],
        }
    }

    /// What is to be sent of a part; `None` when enough was sent.
    fn next(&mut self, part: &LogOutput) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let (stream, part) = match part {
            LogOutput::StdErr { message } => (1, message),
            LogOutput::StdOut { message }
            | LogOutput::StdIn { message }
            | LogOutput::Console { message } => (0, message),
        };
        let continued = std::mem::replace(&mut self.unfinished[stream], !part.ends_with(b"\n"));
        let (time, text) = split(part);
        if let (Some(time), Some(since)) = (time, self.options.since)
            && time < since
        {
            return Some(Bytes::new());
        }
        let whole = self.options.timestamps && !continued;
        let mut out = if whole { part.clone() } else { text };
        out.truncate(self.left);
        self.left -= out.len();
        Some(out)
    }
}

/// A part's time and what follows it; all of the part when Docker has set none before it.
fn split(part: &Bytes) -> (Option<Timestamp>, Bytes) {
    let Some(end) = part.iter().position(|byte| *byte == b' ') else {
        return (None, part.clone());
    };
    let time = std::str::from_utf8(&part[..end]).ok();
    match time.and_then(|time| time.parse().ok()) {
        Some(time) => (Some(time), part.slice(end + 1..)),
        None => (None, part.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(query: &[(&str, &str)]) -> Result<Options, Refusal> {
        let now = "2026-11-27T02:00:10Z".parse().unwrap();
        let owned = query
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        Options::parse(&owned.collect::<Vec<_>>(), now)
    }

    fn read(query: &[(&str, &str)], parts: &[LogOutput]) -> String {
        let mut lines = Lines::new(options(query).unwrap());
        let texts = parts.iter().map_while(|part| lines.next(part));
        String::from_utf8(texts.flatten().collect()).unwrap()
    }

    fn out(text: &str) -> LogOutput {
        let message = Bytes::copy_from_slice(text.as_bytes());
        LogOutput::StdOut { message }
    }

    fn err(text: &str) -> LogOutput {
        let message = Bytes::copy_from_slice(text.as_bytes());
        LogOutput::StdErr { message }
    }

    #[test]
    fn times_are_shown_when_asked_for_and_once_a_line() {
        let parts = [
            out("2026-11-27T02:00:00.5Z half "),
            err("2026-11-27T02:00:01Z beside\n"),
            out("2026-11-27T02:00:02Z line\n"),
        ];
        assert_eq!(read(&[], &parts), "half beside\nline\n");
        assert_eq!(
            read(&[("timestamps", "true")], &parts),
            "2026-11-27T02:00:00.5Z half 2026-11-27T02:00:01Z beside\nline\n"
        );
    }

    #[test]
    fn since_is_exact_and_the_limit_counts_bytes() {
        let parts = [
            out("2026-11-27T02:00:05.1Z old\n"),
            out("2026-11-27T02:00:05.3Z new\n"),
        ];
        let since = [("sinceTime", "2026-11-27T02:00:05.2Z")];
        assert_eq!(read(&since, &parts), "new\n");
        assert_eq!(read(&[("sinceSeconds", "5")], &parts), "old\nnew\n");
        assert_eq!(read(&[("limitBytes", "5")], &parts), "old\nn");
        assert_eq!(read(&[("limitBytes", "0")], &parts), "");
    }

    #[test]
    fn wrong_parameters_are_named() {
        for query in [
            ("tailLines", "-1"),
            ("sinceTime", "yesterday"),
            ("limitBytes", "x"),
        ] {
            let refusal = options(&[query]).unwrap_err();
            assert!(refusal.message.contains(query.0), "{}", refusal.message);
        }
    }
}
