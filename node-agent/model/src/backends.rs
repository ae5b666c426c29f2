//! Backend ids of one family: one id for an address and port, shared by every service that uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use ebpf_abi::backend_state;

use crate::ids::IdPool;
use crate::{MapFamily, Snapshot};

/// How a service uses a backend.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Usage {
    /// It is in the slots.
    Chosen,
    /// Only established connections use it.
    Draining,
}

#[derive(Clone, Debug)]
pub(crate) struct BackendTable {
    ids: IdPool,
    by_addr: BTreeMap<SocketAddr, u32>,
    entries: BTreeMap<u32, Entry>,
    touched: BTreeSet<u32>,
}

#[derive(Clone, Debug)]
struct Entry {
    addr: SocketAddr,
    chosen: u32,
    draining: u32,
}

impl BackendTable {
    /// The table as the maps hold it, not used by any service yet.
    pub(crate) fn restore<A: MapFamily>(snapshot: &Snapshot, size: usize) -> Self {
        let mut by_addr = BTreeMap::new();
        let mut entries = BTreeMap::new();
        for (id, backend) in &A::half(snapshot).backends {
            if backend.state == backend_state::FREE || *id == 0 {
                continue;
            }
            let addr = SocketAddr::new(backend.addr.to_ip(), u16::from_be(backend.port_be));
            by_addr.entry(addr).or_insert(*id);
            entries.insert(
                *id,
                Entry {
                    addr,
                    chosen: 0,
                    draining: 0,
                },
            );
        }
        let ids = IdPool::new(size, &entries.keys().copied().collect());
        Self {
            ids,
            by_addr,
            entries,
            touched: BTreeSet::new(),
        }
    }

    /// Whether ids can be given to all of these.
    pub(crate) fn fits<'a>(
        &mut self,
        addrs: impl Iterator<Item = &'a SocketAddr>,
        now: Duration,
    ) -> bool {
        let missing = addrs
            .filter(|addr| !self.by_addr.contains_key(addr))
            .count();
        missing == 0 || missing <= self.ids.available(now)
    }

    pub(crate) fn id_of(&self, addr: &SocketAddr) -> Option<u32> {
        self.by_addr.get(addr).copied()
    }

    /// Uses the backend of this address, giving it an id if it has none; `None` if there is no free id.
    pub(crate) fn acquire(&mut self, addr: SocketAddr, now: Duration) -> Option<u32> {
        let id = match self.by_addr.get(&addr) {
            Some(id) => *id,
            None => {
                let id = self.ids.allocate(now)?;
                self.by_addr.insert(addr, id);
                self.entries.insert(
                    id,
                    Entry {
                        addr,
                        chosen: 0,
                        draining: 0,
                    },
                );
                id
            }
        };
        self.acquire_id(id, Usage::Chosen);
        Some(id)
    }

    /// Uses a backend by its id; false if the id is free.
    pub(crate) fn acquire_id(&mut self, id: u32, usage: Usage) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        *entry.count(usage) += 1;
        self.touched.insert(id);
        true
    }

    /// Uses it no longer; the last user withdraws the id.
    pub(crate) fn release(&mut self, id: u32, usage: Usage, now: Duration) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let count = entry.count(usage);
        *count = count.saturating_sub(1);
        self.touched.insert(id);
        if entry.chosen == 0 && entry.draining == 0 {
            self.withdraw(id, now);
        }
    }

    /// Withdraws what was restored and nobody came for.
    pub(crate) fn sweep(&mut self, now: Duration) {
        let unused: Vec<u32> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.chosen == 0 && entry.draining == 0)
            .map(|(id, _)| *id)
            .collect();
        for id in unused {
            self.touched.insert(id);
            self.withdraw(id, now);
        }
    }

    /// Address and state that the map should hold; `None` if the id is free.
    pub(crate) fn wanted(&self, id: u32) -> Option<(SocketAddr, u16)> {
        let entry = self.entries.get(&id)?;
        let state = if entry.chosen > 0 {
            backend_state::ACTIVE
        } else {
            backend_state::TERMINATING
        };
        Some((entry.addr, state))
    }

    pub(crate) fn touch_all(&mut self) {
        self.touched.extend(self.entries.keys());
    }

    pub(crate) fn touch(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.touched.extend(ids);
    }

    pub(crate) fn take_touched(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.touched)
    }

    fn withdraw(&mut self, id: u32, now: Duration) {
        if let Some(entry) = self.entries.remove(&id) {
            if self.by_addr.get(&entry.addr) == Some(&id) {
                self.by_addr.remove(&entry.addr);
            }
            self.ids.release(id, now);
        }
    }
}

impl Entry {
    fn count(&mut self, usage: Usage) -> &mut u32 {
        match usage {
            Usage::Chosen => &mut self.chosen,
            Usage::Draining => &mut self.draining,
        }
    }
}
