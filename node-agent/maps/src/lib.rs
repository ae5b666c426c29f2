//! The dataplane in the kernel as user space sees it: load, attach, pin, read and write, collect.
//!
//! This is the only crate that knows aya. [`Dataplane::open`] loads the object that `build.rs` built, adopts what an
//! earlier agent pinned, and hands out [`Maps`], through which the reconciler writes
//! ([`MapSink`](node_agent_model::MapSink)) and everybody else reads. [`Maps::open_read_only`] needs no agent.
//!
//! `cargo build -p node-agent-maps` leaves the object at `OUT_DIR/fairlead.bpf.o`, `OUT_DIR` being
//! `target/<profile>/build/node-agent-maps-<hash>/out` (cargo's `--message-format=json` names it in the
//! `build-script-executed` message of this package). The same bytes are [`OBJECT`].

mod adopt;
mod attach;
mod bytes;
mod conns;
mod counters;
mod error;
mod gc;
mod identity;
mod layout;
mod load;
mod lock;
mod maps;
mod measure;
mod object;
mod pins;
mod program;
mod resize;
mod sink;
mod sizes;
mod snapshot;
mod sys;
mod table;
mod test_run;
mod trial;

pub use attach::{Attached, DeviceMode, Link, LinkTarget, links};
pub use conns::Conns;
pub use counters::{MapUsage, Operations};
pub use error::Error;
pub use gc::{ConnState, GcReport, IdleConns, Timeouts, conn_state, monotonic_now_ns};
pub use layout::MapLayout;
pub use load::{Dataplane, Options};
pub use lock::{PinLock, PinOwner, owner_of};
pub use maps::{FamilyMaps, MapFamily, Maps};
pub use measure::{MapTimes, measure_maps};
pub use object::OBJECT;
pub use pins::{Pin, PinKind, pins, remove_pins};
pub use program::Program;
pub use sizes::Sizes;
pub use table::{MapError, Table};
pub use test_run::{LiveFrames, TestRun, TestRunResult};
pub use trial::Trial;
