//! What is worked out of all objects of some kinds, and worked out anew when one of them has changed.
//!
//! Nothing runs in between: who asks looks whether something has changed since, which costs one atomic load a kind.

use std::sync::{Arc, PoisonError, RwLock};

use control_plane_registry::{Kind, Registry};
use tokio::sync::watch::Receiver;

/// A `T` that follows objects.
#[derive(Debug)]
pub struct Followed<T> {
    kinds: Vec<&'static Kind>,
    state: RwLock<Option<State<T>>>,
}

#[derive(Debug)]
struct State<T> {
    changes: Vec<Receiver<()>>,
    value: Arc<T>,
}

impl<T> Followed<T> {
    pub fn new(kinds: impl IntoIterator<Item = &'static Kind>) -> Self {
        Self {
            kinds: kinds.into_iter().collect(),
            state: RwLock::new(None),
        }
    }

    /// The value for the objects that there are now, by `make` if they have changed.
    pub fn get(&self, registry: &Registry, make: impl FnOnce(&Registry) -> T) -> Arc<T> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = state.as_ref().filter(|state| !state.is_old()) {
            return state.value.clone();
        }
        drop(state);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been faster.
        if let Some(state) = state.as_ref().filter(|state| !state.is_old()) {
            return state.value.clone();
        }
        // Subscribed before anything is read: a change that comes while reading is seen the next time.
        let kinds = self.kinds.iter();
        let changes = kinds.map(|kind| registry.changes(kind)).collect();
        let value = Arc::new(make(registry));
        *state = Some(State {
            changes,
            value: value.clone(),
        });
        value
    }
}

impl<T> State<T> {
    fn is_old(&self) -> bool {
        // A sender that is gone means that the kind's cache was replaced.
        self.changes.iter().any(|c| c.has_changed().unwrap_or(true))
    }
}
