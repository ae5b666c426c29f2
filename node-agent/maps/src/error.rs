//! Why the dataplane could not be opened, attached or run.

use std::{io, path::PathBuf};

use ebpf_abi::{SLOTS_PER_WORD, conn_word};

use crate::{MapError, MapLayout, Program};

/// An operation of this crate failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{} is not on a bpffs: mount one there with `mount -t bpf bpf {}`, or name another directory",
        path.display(),
        path.ancestors().nth(1).unwrap_or(path).display()
    )]
    NotBpffs { path: PathBuf },
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("load the eBPF object")]
    Object {
        #[source]
        source: aya::EbpfError,
    },
    #[error("load program {program}")]
    LoadProgram {
        program: Program,
        #[source]
        source: aya::programs::ProgramError,
    },
    #[error(
        "the eBPF object declares no {what} {name}: it was built from other sources than this agent"
    )]
    NotInObject { what: &'static str, name: String },
    #[error(
        "map {map} is pinned at {} as {pinned}, but this agent wants {wanted}: remove the pin, by which its \
         contents are lost",
        path.display()
    )]
    LayoutDiffers {
        map: &'static str,
        path: PathBuf,
        pinned: MapLayout,
        wanted: MapLayout,
    },
    #[error(
        "map {map} holds {needed} entries, {wanted} were asked for: ask for at least so many, or take away what is \
         in it"
    )]
    TooSmall {
        map: &'static str,
        needed: u32,
        wanted: u32,
    },
    #[error(
        "map {map} is pinned at {} as {pinned}, but this version reads key {key_size} B value {value_size} B",
        path.display()
    )]
    SizesDiffer {
        map: &'static str,
        path: PathBuf,
        pinned: MapLayout,
        key_size: usize,
        value_size: usize,
    },
    #[error(
        "{} is in use by {owner}: one agent a pin directory; stop it, or name another with --pin-dir",
        path.display()
    )]
    InUse { path: PathBuf, owner: String },
    #[error(
        "map {map} cannot have {size} entries: a multiple of {SLOTS_PER_WORD}, at most {}",
        conn_word::MAX_CONNS
    )]
    ConnTableSize { map: &'static str, size: u32 },
    #[error("map {map} is not pinned at {}: no agent ran with this directory", path.display())]
    NotPinned { map: &'static str, path: PathBuf },
    #[error("{action} program {program}")]
    Program {
        action: &'static str,
        program: Program,
        #[source]
        source: io::Error,
    },
    #[error("{action} link {name}")]
    Link {
        action: &'static str,
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("attach to interface {ifindex}: tcx needs Linux 6.6 or newer, this is {release}")]
    TcxUnsupported { ifindex: u32, release: String },
    #[error(
        "`{name}` cannot name a link: 1 to 64 letters, digits, `-`, `_` (the bpffs allows no dot)"
    )]
    LinkName { name: String },
    #[error("start the kernel log reader")]
    Log {
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Map(#[from] MapError),
}
