//! Watch: the present state if asked, then every change, in one order, for as long as the watcher keeps up.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch::Receiver;
use tokio::time::{Instant, Sleep};

use crate::cache::{Cache, Position};
use crate::errors::{ApiError, Result};
use crate::kinds::Kind;
use crate::object::{Event, EventType, Object};
use crate::options::WatchOptions;
use crate::registry::Registry;

/// So many changes go out together at most.
const BATCH: usize = 256;
/// How often a quiet watch tells how far it is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// One watch.
#[derive(Debug)]
pub struct Watch {
    kind: &'static Kind,
    cache: Arc<Cache>,
    changed: Receiver<()>,
    namespace: String,
    options: WatchOptions,
    initial: std::vec::IntoIter<Arc<Object>>,
    /// The bookmark that ends the initial events is still to be sent.
    announce: bool,
    /// Everything up to here has been handed out.
    revision: u64,
    position: Position,
    /// When a quiet watch tells how far it is; for those who want to know.
    bookmark_due: Pin<Box<Sleep>>,
    ended: bool,
}

/// One thing to tell the watcher.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// An object of the state at the beginning.
    Initial(Arc<Object>),
    /// A change, as this watcher's selectors see it.
    Change(EventType, Arc<Event>),
    /// Everything up to this revision was told; with `initial_end`, it ends the state at the beginning.
    Bookmark { revision: u64, initial_end: bool },
    /// The watch ends here.
    Error(ApiError),
}

impl Registry {
    /// Watches the objects of a namespace (empty: of all).
    ///
    /// # Errors
    /// 422 for options that make no sense, 410 for a version whose changes are no longer known, 504 for one that has not
    /// happened.
    pub async fn watch(
        &self,
        kind: &'static Kind,
        namespace: &str,
        options: WatchOptions,
    ) -> Result<Watch> {
        options.validate()?;
        let cache = self.shared_cache();
        let changed = cache.listen(kind);
        let version = options.resource_version.unwrap_or(0);
        let initial_events = options.send_initial_events == Some(true);
        let mut watch = Watch {
            kind,
            changed,
            namespace: namespace.to_owned(),
            initial: Vec::new().into_iter(),
            announce: initial_events && options.bookmarks,
            revision: version,
            position: cache.position_after(kind, u64::MAX)?,
            bookmark_due: Box::pin(tokio::time::sleep(BOOKMARK_EVERY)),
            ended: false,
            cache,
            options,
        };
        self.settle(watch.options.resource_version).await?;
        let from_present = if watch.options.send_initial_events == Some(false) {
            if version == 0 {
                let present = watch.cache.snapshot(kind, "");
                (watch.position, watch.revision) = (present.1, present.2);
            }
            false
        } else {
            initial_events || version == 0
        };
        if from_present {
            let scope = if namespace.is_empty() {
                String::new()
            } else {
                format!("{namespace}/")
            };
            let (mut objects, position, revision) = watch.cache.snapshot(kind, &scope);
            objects.retain(|o| watch.matches(o));
            watch.initial = objects.into_iter();
            watch.position = position;
            watch.revision = revision;
        } else if version > 0 {
            watch.position = watch.cache.position_after(kind, version)?;
        }
        Ok(watch)
    }
}

impl Watch {
    /// What comes next, at least one thing; `None` after the end.
    pub async fn next(&mut self) -> Option<Vec<WatchItem>> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(items) = self.begin() {
                return Some(items);
            }
            // Marked as seen before reading: a change that comes while reading wakes us again.
            self.changed.borrow_and_update();
            let complete = self.cache.revision();
            match self.cache.read_on(self.kind, &mut self.position, BATCH) {
                Err(error) => {
                    self.ended = true;
                    return Some(vec![WatchItem::Error(error)]);
                }
                Ok(events) if events.is_empty() => {
                    self.revision = self.revision.max(complete);
                    if let Some(bookmark) = self.wait().await {
                        return Some(vec![bookmark]);
                    }
                }
                Ok(events) => {
                    if let Some(last) = events.last() {
                        self.revision = self.revision.max(last.revision);
                    }
                    let items: Vec<_> = events.into_iter().filter_map(|e| self.seen(e)).collect();
                    if !items.is_empty() {
                        return Some(items);
                    }
                }
            }
        }
    }

    /// Whether the state at the beginning is still to be told.
    #[must_use]
    pub fn is_beginning(&self) -> bool {
        self.initial.len() > 0 || self.announce
    }

    /// How far this watch is, for the moment before it ends.
    #[must_use]
    pub fn bookmark(&self) -> Option<WatchItem> {
        let ready = self.options.bookmarks && !self.is_beginning();
        ready.then_some(WatchItem::Bookmark {
            revision: self.revision,
            initial_end: false,
        })
    }

    /// The state at the beginning, part after part, and the bookmark that ends it.
    fn begin(&mut self) -> Option<Vec<WatchItem>> {
        let mut items: Vec<_> = self
            .initial
            .by_ref()
            .take(BATCH)
            .map(WatchItem::Initial)
            .collect();
        if self.initial.len() == 0 && std::mem::take(&mut self.announce) {
            items.push(WatchItem::Bookmark {
                revision: self.revision,
                initial_end: true,
            });
        }
        (!items.is_empty()).then_some(items)
    }

    /// Waits for a change, or for the time of a bookmark.
    async fn wait(&mut self) -> Option<WatchItem> {
        if !self.options.bookmarks {
            self.ended = self.changed.changed().await.is_err();
            return None;
        }
        tokio::select! {
            biased;
            changed = self.changed.changed() => {
                self.ended = changed.is_err();
                None
            }
            () = &mut self.bookmark_due => {
                let next = Instant::now() + BOOKMARK_EVERY;
                self.bookmark_due.as_mut().reset(next);
                self.bookmark()
            }
        }
    }

    /// The change as this watcher sees it: what begins to match is added, what ceases to match is deleted.
    fn seen(&self, event: Arc<Event>) -> Option<WatchItem> {
        let before = event.previous.as_ref().is_some_and(|o| self.matches(o));
        let after = event.kind != EventType::Deleted && self.matches(&event.object);
        let kind = match (before, after) {
            (false, false) => return None,
            (false, true) => EventType::Added,
            (true, true) => EventType::Modified,
            (true, false) => EventType::Deleted,
        };
        Some(WatchItem::Change(kind, event))
    }

    fn matches(&self, object: &Object) -> bool {
        (self.namespace.is_empty() || *object.namespace == *self.namespace)
            && self.options.labels.matches(object)
            && self.options.fields.matches(object)
    }
}
