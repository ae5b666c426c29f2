//! Golden scripts: Kubernetes objects in, dump of the maps out.
//!
//! A case is one file of `cases/`: a sentence, then sections. `-- N.yaml --` holds objects that are created or replaced,
//! `-- N.delete --` names objects as `Kind namespace/name`, `-- N.maps --` is what the maps then hold. Each case runs
//! with the objects of a step arriving in order and in reverse, planned one by one and all at once; after every step a
//! restarted agent must plan nothing, and at the end, all objects deleted, nothing may be left in force.
//!
//! `FAIRLEAD_UPDATE=1` writes the dumps anew.
#![forbid(unsafe_code)]

mod dump;
mod run;
mod script;

pub use dump::dump;
pub use run::{Arrival, run};
pub use script::{Script, Step};
