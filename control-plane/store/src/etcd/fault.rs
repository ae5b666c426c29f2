//! What a failed request to etcd means: whether it was done, and whether another member may do it.
//!
//! etcd's answers are told apart by their text, which its own client does too
//! (<https://github.com/etcd-io/etcd/blob/v3.4.23/etcdserver/api/v3rpc/rpctypes/error.go>).

use std::error::Error as _;

use etcd_client::Error;
use tonic::{Code, ConnectError};

use crate::StoreError;

/// A failed request.
#[derive(Debug)]
pub(super) struct Fault {
    pub kind: FaultKind,
    pub source: Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// Surely not done; another member may do it, or the same one later.
    NotDone,
    /// It may have been done, or be done yet.
    Unknown,
    /// The revision asked for is compacted.
    Compacted,
    /// The revision asked for has not happened.
    Future,
    /// The database has reached its quota.
    NoSpace,
    TooLarge,
    /// The same request will be refused again.
    Refused,
}

const TEXTS: &[(&str, FaultKind)] = &[
    ("required revision has been compacted", FaultKind::Compacted),
    ("required revision is a future revision", FaultKind::Future),
    ("database space exceeded", FaultKind::NoSpace),
    ("request is too large", FaultKind::TooLarge),
    ("received message larger than max", FaultKind::TooLarge),
    // Refused before it was proposed to the other members.
    ("etcdserver: no leader", FaultKind::NotDone),
    ("etcdserver: too many requests", FaultKind::NotDone),
    ("rpc not supported for learner", FaultKind::NotDone),
];

impl Fault {
    pub(super) fn of(source: Error) -> Self {
        let kind = match &source {
            Error::GRpcStatus(status) => kind_of(status),
            Error::TransportError(_) | Error::IoError(_) | Error::WatchError(_) => {
                FaultKind::Unknown
            }
            _ => FaultKind::Refused,
        };
        Self { kind, source }
    }

    /// The member gave no answer within the time that a request gets.
    pub(super) fn silence() -> Self {
        Self {
            kind: FaultKind::Unknown,
            source: Error::GRpcStatus(tonic::Status::deadline_exceeded("no answer in time")),
        }
    }

    /// The failure was before the request: while connecting or authenticating.
    pub(super) fn before_request(source: Error) -> Self {
        let fault = Self::of(source);
        match fault.kind {
            FaultKind::Unknown => Self {
                kind: FaultKind::NotDone,
                ..fault
            },
            _ => fault,
        }
    }

    /// Whether another member may answer better.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self.kind, FaultKind::NotDone | FaultKind::Unknown)
    }

    /// What the caller of a read is told, unless it knows better.
    pub(super) fn of_read(self, servers: &str) -> StoreError {
        if self.is_transient() {
            StoreError::Unreachable {
                servers: servers.to_owned(),
                source: self.source.into(),
            }
        } else {
            StoreError::Refused {
                source: self.source.into(),
            }
        }
    }

    /// What the caller of a write is told, unless it knows better.
    pub(super) fn of_write(self, servers: &str) -> StoreError {
        match self.kind {
            FaultKind::Unknown => StoreError::Unanswered {
                source: self.source.into(),
            },
            FaultKind::NoSpace => StoreError::QuotaReached {
                source: self.source.into(),
            },
            _ => self.of_read(servers),
        }
    }
}

fn kind_of(status: &tonic::Status) -> FaultKind {
    let known = TEXTS
        .iter()
        .find(|(text, _)| status.message().contains(text));
    if let Some((_, kind)) = known {
        return *kind;
    }
    match status.code() {
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Aborted => {
            if never_connected(status) {
                FaultKind::NotDone
            } else {
                FaultKind::Unknown
            }
        }
        _ => FaultKind::Refused,
    }
}

/// Whether the request failed because there was no connection to send it over.
fn never_connected(status: &tonic::Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    fn kind(status: Status) -> FaultKind {
        Fault::of(Error::GRpcStatus(status)).kind
    }

    #[test]
    fn what_may_have_been_written_is_never_called_not_done() {
        for text in [
            "etcdserver: request timed out",
            "etcdserver: request timed out, possibly due to previous leader failure",
            "etcdserver: request timed out, possibly due to connection lost",
            "etcdserver: leader changed",
            "etcdserver: server stopped",
            "error reading a body from connection",
        ] {
            assert_eq!(
                kind(Status::unavailable(text)),
                FaultKind::Unknown,
                "{text}"
            );
            assert_eq!(kind(Status::unknown(text)), FaultKind::Unknown, "{text}");
        }
        assert_eq!(Fault::silence().kind, FaultKind::Unknown);
        let no_leader = Status::unavailable("etcdserver: no leader");
        assert_eq!(kind(no_leader), FaultKind::NotDone);
    }

    #[test]
    fn refusals_are_not_tried_again() {
        for status in [
            Status::permission_denied("etcdserver: permission denied"),
            Status::invalid_argument("etcdserver: user name is empty"),
            Status::unauthenticated("etcdserver: invalid auth token"),
            Status::invalid_argument("etcdserver: too many operations in txn request"),
        ] {
            assert_eq!(kind(status), FaultKind::Refused);
        }
    }
}
