#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // For tests: a failure panics.
#![allow(clippy::missing_panics_doc, clippy::missing_errors_doc)]

mod bytes_channel;
#[cfg(feature = "certificates")]
mod certificates;
mod conformance;
mod counting;
mod endings;
mod guests;
mod mutations;
mod network;
mod pipe;
#[cfg(feature = "tracing")]
mod trace;

pub use bytes_channel::{Bytes, NoUnblock};
#[cfg(feature = "certificates")]
pub use certificates::Authority;
pub use conformance::{fixed_places_conformance, transport_conformance};
pub use counting::CountingAllocator;
pub use endings::endings_conformance;
pub use guests::{bytes, guest, write};
pub use mutations::{exercise, mutations, seeds};
pub use network::{Network, NetworkListener};
pub use pipe::{Pipe, Pipes, PipesEnd};
#[cfg(feature = "tracing")]
pub use trace::Trace;
