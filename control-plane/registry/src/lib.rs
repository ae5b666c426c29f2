//! What objects mean: kinds, decoding, defaulting, validation, patches, allocation, selectors, deletion and the
//! watch cache, between the [store](control_plane_store) (bytes under keys) and whoever serves the API.
//!
//! Kinds are data: one row of [`kinds::all`] over untyped JSON. This crate knows no HTTP.

#![forbid(unsafe_code)]

pub mod admission;
mod admit;
pub mod allocate;
mod apply;
mod bootstrap;
mod cache;
mod cleanup;
mod commit;
pub mod custom;
pub mod decode;
mod delete;
pub mod errors;
mod evict;
mod field;
mod housekeeping;
pub mod json;
pub mod kinds;
pub mod labels;
mod list;
mod managed;
pub mod merge;
mod meta;
mod modify;
mod object;
pub mod options;
mod outline;
mod parts;
mod prepare;
mod protobuf;
mod quota;
mod registry;
mod scale;
pub mod schema;
pub mod selector;
mod strategic;
mod strategies;
pub mod table;
mod validate;
mod watch;
mod write;
mod yaml;

pub use cache::ROOT;
pub use delete::Deleted;
pub use errors::{ApiError, FieldError, Reason};
pub use kinds::{Kind, Kinds, Subresource};
pub use list::List;
pub use object::{Event, EventType, Object, frame, frame_of};
pub use options::{
    DeleteOptions, FieldValidation, ListOptions, PatchType, Propagation, VersionMatch,
    WatchOptions, WriteOptions,
};
pub use registry::{OpenError, Options, Registry};
pub use watch::{Watch, WatchItem};
pub use write::Written;
