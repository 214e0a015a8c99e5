//! How Skein's processes are seen: one catalogue of metrics ([`names`]), the recorder behind it
//! ([`install`]), the small HTTP endpoint that shows it ([`serve`]) and logging ([`init_logging`]).
//! Also home of [`loggen`], the generator of realistic log lines that the demo, the benchmarks and
//! the tests share, so that every number in the project was measured on the same text.
//!
//! Invariant: a metric that is not in the catalogue does not exist. `docs/metrics.md` is generated
//! from it, and tests hold its names to Prometheus's conventions.

mod http;
pub mod loggen;
mod logging;
pub mod names;
mod process;
mod recorder;
pub mod reference;

pub use http::{ADMIN_CONNECTIONS_MAX, ADMIN_REQUEST_BYTES_MAX, serve};
pub use logging::init_logging;
pub use recorder::{Handle, install};
