//! Are two loaded programs the same? An agent that restarts must change nothing that need not change.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use crate::{
    layout::map_type,
    sys::{self, prog_info, prog_map_ids},
};

/// What makes a program: its instructions, the maps that it shares with others, and the constants that it has for
/// itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Identity {
    tag: [u8; 8],
    /// Ids of the pinned maps, sorted.
    shared_maps: Vec<u32>,
    /// Contents of the other maps (`.rodata` and the like), sorted; `None` for one that cannot be compared.
    constants: Vec<Option<Vec<u8>>>,
}

impl Identity {
    /// `pinned` are the ids of the pinned maps.
    pub fn of(program: BorrowedFd<'_>, pinned: &[u32]) -> io::Result<Self> {
        let (mut shared_maps, own): (Vec<_>, Vec<_>) = prog_map_ids(program)?
            .into_iter()
            .partition(|id| pinned.contains(id));
        shared_maps.sort_unstable();
        let mut constants = own
            .into_iter()
            .map(contents)
            .collect::<io::Result<Vec<Option<Vec<u8>>>>>()?;
        constants.sort();
        Ok(Self {
            tag: prog_info(program)?.tag,
            shared_maps,
            constants,
        })
    }

    /// Whether two programs do the same. One that logs into a buffer of its own is never the same as another.
    pub fn same(&self, other: &Self) -> bool {
        self == other && self.constants.iter().all(Option::is_some)
    }
}

fn contents(map: u32) -> io::Result<Option<Vec<u8>>> {
    let fd = sys::map_by_id(map)?;
    let (_, layout) = sys::map_info(fd.as_fd())?;
    if layout.map_type != map_type::ARRAY || layout.max_entries != 1 || layout.key_size != 4 {
        return Ok(None);
    }
    let mut value = vec![0; layout.value_size as usize];
    // SAFETY: an array's key has four bytes, and `value` has the size that the kernel just told.
    unsafe { sys::lookup_elem(fd.as_fd(), &0_u32.to_ne_bytes(), &mut value)? };
    Ok(Some(value))
}
