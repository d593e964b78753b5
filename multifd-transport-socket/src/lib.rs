#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod address;
mod bandwidth;
mod connect;
mod connection;
mod door;
mod inherited;
mod listen;
mod lobby;
mod options;
mod reception;
mod secret;
mod stream;
// All of this crate's unsafe code: raw IOVs handed to the kernel, and numbers of descriptors.
#[allow(unsafe_code)]
mod sys;
mod tls;
mod unix_path;
mod zero_copy;

pub use address::{Address, AddressError, Source};
pub use bandwidth::Bandwidth;
pub use connect::SocketTransport;
pub use door::{Admission, OnRefusal, Refusal};
pub use ipnet::IpNet;
pub use listen::SocketListener;
pub use options::{CongestionControl, CongestionControlError, SocketOptions};
pub use secret::{Secret, SecretError};
pub use stream::SocketStream;
pub use tls::{TlsClient, TlsError, TlsServer};
pub use zero_copy::ZeroCopyCounts;
