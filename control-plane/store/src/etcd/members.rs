//! The members of an etcd cluster: requests go to one of them until it fails, then to the next.
//!
//! Reads are tried again on other members for as long as the patience lasts. A write is tried again only when it was
//! surely not done, so nothing is ever written twice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};

use super::fault::{Fault, FaultKind};

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(500);

pub(super) struct Members {
    members: Vec<Member>,
    options: ConnectOptions,
    /// How long a request is tried.
    patience: Duration,
    /// Where requests go now.
    current: AtomicUsize,
}

struct Member {
    url: String,
    client: OnceCell<Client>,
}

/// Whether doing a request twice does harm.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Always,
    IfNotDone,
}

impl Members {
    pub(super) fn new(urls: &[String], options: ConnectOptions, patience: Duration) -> Self {
        let members = urls.iter().map(|url| Member {
            url: url.clone(),
            client: OnceCell::new(),
        });
        Self {
            members: members.collect(),
            options,
            patience,
            current: AtomicUsize::new(0),
        }
    }

    /// The members' URLs, for messages.
    pub(super) fn urls(&self) -> String {
        let urls: Vec<&str> = self.members.iter().map(|m| m.url.as_str()).collect();
        urls.join(",")
    }

    /// Asks one member after the other.
    pub(super) async fn read<T, F, Fut>(&self, request: F) -> Result<T, Fault>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        // So short that a second member gets its chance.
        let limit = self.patience * 2 / 5;
        self.repeat(limit, Repeat::Always, request).await
    }

    /// Has one member write, another one only if the first surely did not.
    pub(super) async fn write<T, F, Fut>(&self, request: F) -> Result<T, Fault>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        self.repeat(self.patience, Repeat::IfNotDone, request).await
    }

    /// One attempt at the member that requests go to now, and which one that is.
    pub(super) async fn once<T, F, Fut>(
        &self,
        limit: Duration,
        request: F,
    ) -> (usize, Result<T, Fault>)
    where
        F: FnOnce(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let at = self.current.load(Ordering::Relaxed);
        let member = &self.members[at % self.members.len()];
        let result = match timeout(limit, member.client(&self.options)).await {
            Ok(Ok(client)) => match timeout(limit, request(client)).await {
                Ok(result) => result.map_err(Fault::of),
                Err(_) => Err(Fault::silence()),
            },
            Ok(Err(error)) => Err(Fault::before_request(error)),
            Err(_) => Err(Fault {
                kind: FaultKind::NotDone,
                ..Fault::silence()
            }),
        };
        if let Err(fault) = &result
            && fault.is_transient()
        {
            self.leave(at, &fault.source);
        }
        (at, result)
    }

    /// Goes on with the next member, unless somebody has already left this one.
    pub(super) fn leave(&self, at: usize, why: &dyn std::fmt::Display) {
        let left = self
            .current
            .compare_exchange(at, at + 1, Ordering::Relaxed, Ordering::Relaxed);
        if left.is_ok() && self.members.len() > 1 {
            let url = |at: usize| &self.members[at % self.members.len()].url;
            tracing::warn!(from = url(at), to = url(at + 1), %why, "leaving an etcd member");
        }
    }

    async fn repeat<T, F, Fut>(&self, limit: Duration, when: Repeat, request: F) -> Result<T, Fault>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + self.patience;
        let mut pause = FIRST_PAUSE;
        loop {
            let fault = match self.once(limit, &request).await.1 {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let again = match when {
                Repeat::Always => fault.is_transient(),
                Repeat::IfNotDone => fault.kind == FaultKind::NotDone,
            };
            if !again || Instant::now() + pause >= deadline {
                return Err(fault);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }
}

impl Member {
    /// A client of this member alone, made at its first use: with a user it has to authenticate.
    async fn client(&self, options: &ConnectOptions) -> Result<Client, Error> {
        let connect = || Client::connect([&self.url], Some(options.clone()));
        self.client.get_or_try_init(connect).await.cloned()
    }
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Members").field(&self.urls()).finish()
    }
}
