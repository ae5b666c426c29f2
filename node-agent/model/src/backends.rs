//! Backend ids of one family: one id for an address and port, shared by every service that uses it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use ebpf_abi::backend_state;

use crate::address::IpPort;
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
    by_addr: HashMap<IpPort, u32>,
    /// By id.
    entries: Vec<Option<Entry>>,
    touched: BTreeSet<u32>,
}

#[derive(Clone, Debug)]
struct Entry {
    addr: IpPort,
    chosen: u32,
    draining: u32,
}

impl BackendTable {
    /// The table as the maps hold it, not used by any service yet.
    pub(crate) fn restore<A: MapFamily>(snapshot: &Snapshot, size: usize) -> Self {
        let mut table = Self {
            ids: IdPool::default(),
            by_addr: HashMap::new(),
            entries: Vec::new(),
            touched: BTreeSet::new(),
        };
        let mut used = BTreeSet::new();
        for (id, backend) in &A::half(snapshot).backends {
            if backend.state == backend_state::FREE || *id == 0 {
                continue;
            }
            let addr = IpPort {
                ip: backend.addr.to_ip(),
                port: u16::from_be(backend.port_be),
            };
            used.insert(*id);
            table.by_addr.entry(addr).or_insert(*id);
            table.put(*id, addr);
        }
        table.ids = IdPool::new(size, &used);
        table
    }

    /// Whether ids can be given to all of these.
    pub(crate) fn fits(&mut self, addrs: impl Iterator<Item = IpPort>, now: Duration) -> bool {
        let missing = addrs
            .filter(|addr| !self.by_addr.contains_key(addr))
            .count();
        missing == 0 || missing <= self.ids.available(now)
    }

    pub(crate) fn id_of(&self, addr: IpPort) -> Option<u32> {
        self.by_addr.get(&addr).copied()
    }

    /// Gives an id to the backend of this address, which has none yet; `None` if there is no free id. Nobody uses it
    /// before [`BackendTable::acquire`].
    pub(crate) fn admit(&mut self, addr: IpPort, now: Duration) -> Option<u32> {
        let id = self.ids.allocate(now)?;
        self.by_addr.insert(addr, id);
        self.put(id, addr);
        Some(id)
    }

    /// Takes an id back that [`BackendTable::admit`] gave and nobody used: no map has heard of it, so it need not rest.
    pub(crate) fn dismiss(&mut self, id: u32) {
        if let Some(entry) = self.take(id) {
            self.by_addr.remove(&entry.addr);
            self.ids.give_back(id);
        }
    }

    /// Uses a backend by its id; false if the id is free.
    pub(crate) fn acquire(&mut self, id: u32, usage: Usage) -> bool {
        let Some(entry) = self.entry(id) else {
            return false;
        };
        *entry.count(usage) += 1;
        self.touched.insert(id);
        true
    }

    /// Uses it no longer; the last user withdraws the id.
    pub(crate) fn release(&mut self, id: u32, usage: Usage, now: Duration) {
        let Some(entry) = self.entry(id) else {
            return;
        };
        let count = entry.count(usage);
        *count = count.saturating_sub(1);
        let unused = entry.is_unused();
        self.touched.insert(id);
        if unused {
            self.withdraw(id, now);
        }
    }

    /// Withdraws what was restored and nobody came for.
    pub(crate) fn sweep(&mut self, now: Duration) {
        let unused = self.used().filter(|(_, entry)| entry.is_unused());
        let unused: Vec<u32> = unused.map(|(id, _)| id).collect();
        for id in unused {
            self.touched.insert(id);
            self.withdraw(id, now);
        }
    }

    /// Address and state that the map should hold; `None` if the id is free.
    pub(crate) fn wanted(&self, id: u32) -> Option<(IpPort, u16)> {
        let entry = self.entries.get(id as usize)?.as_ref()?;
        let state = if entry.chosen > 0 {
            backend_state::ACTIVE
        } else {
            backend_state::TERMINATING
        };
        Some((entry.addr, state))
    }

    pub(crate) fn touch_all(&mut self) {
        let ids: Vec<u32> = self.used().map(|(id, _)| id).collect();
        self.touched.extend(ids);
    }

    pub(crate) fn touch(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.touched.extend(ids);
    }

    pub(crate) fn take_touched(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.touched)
    }

    fn withdraw(&mut self, id: u32, now: Duration) {
        if let Some(entry) = self.take(id) {
            if self.by_addr.get(&entry.addr) == Some(&id) {
                self.by_addr.remove(&entry.addr);
            }
            self.ids.release(id, now);
        }
    }

    fn used(&self) -> impl Iterator<Item = (u32, &Entry)> {
        let numbered = (0..).zip(&self.entries);
        numbered.filter_map(|(id, entry)| Some((id, entry.as_ref()?)))
    }

    fn entry(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)?.as_mut()
    }

    fn take(&mut self, id: u32) -> Option<Entry> {
        self.entries.get_mut(id as usize)?.take()
    }

    fn put(&mut self, id: u32, addr: IpPort) {
        let index = id as usize;
        if index >= self.entries.len() {
            self.entries.resize_with(index + 1, || None);
        }
        self.entries[index] = Some(Entry {
            addr,
            chosen: 0,
            draining: 0,
        });
    }
}

impl Entry {
    fn is_unused(&self) -> bool {
        self.chosen == 0 && self.draining == 0
    }

    fn count(&mut self, usage: Usage) -> &mut u32 {
        match usage {
            Usage::Chosen => &mut self.chosen,
            Usage::Draining => &mut self.draining,
        }
    }
}
