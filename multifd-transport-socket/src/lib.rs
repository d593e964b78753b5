#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
#![deny(missing_docs)]

mod address;
mod bandwidth;
mod connect;
mod connection;
mod door;
mod inherited;
mod listen;
mod lobby;
mod options;
#[cfg(any(feature = "tls", feature = "secret"))]
mod reception;
// Two system calls.
#[allow(unsafe_code)]
mod schedule;
#[cfg(feature = "secret")]
mod secret;
#[cfg(not(feature = "secret"))]
#[path = "secret_absent.rs"]
mod secret;
mod stream;
// The other unsafe code of this crate: raw IOVs handed to the kernel, and numbers of descriptors.
#[allow(unsafe_code)]
mod sys;
mod tls;
mod unix_path;
mod zero_copy;

pub use address::{Address, AddressError, Source};
pub use bandwidth::Bandwidth;
pub use connect::SocketTransport;
pub use door::{Admission, OnRefusal, Refusal};
#[cfg(feature = "admission")]
pub use ipnet::{self, IpNet};
pub use listen::SocketListener;
pub use options::{CongestionControl, CongestionControlError, SocketOptions};
pub use schedule::batch_scheduling;
#[cfg(feature = "secret")]
pub use secret::{Secret, SecretError};
pub use socket2;
pub use stream::SocketStream;
#[cfg(feature = "tls")]
pub use tls::{TlsClient, TlsError, TlsServer};
pub use zero_copy::ZeroCopyCounts;

pub use multifd_core;
