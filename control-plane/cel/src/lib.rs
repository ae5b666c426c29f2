//! Expressions in CEL as Kubernetes has it (<https://kubernetes.io/docs/reference/using-api/cel/>).
//!
//! The crate `cel` reads them; they are worked out here, because everybody who may write a definition or a policy gives the
//! server work with them: every step is counted, and who uses up the budget is refused. What an expression names is
//! checked when it is compiled, so that nothing is accepted that could only fail.

#![forbid(unsafe_code)]

mod check;
mod convert;
mod eval;
mod functions;
mod program;
mod value;

pub use convert::from_json;
pub use eval::{Budget, Failure};
pub use program::{CompileError, Program, Variable};
pub use value::Value;
