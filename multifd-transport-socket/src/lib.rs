#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod address;
mod connect;
mod listen;
mod options;
mod stream;
// All of this crate's unsafe code: raw IOVs handed to the kernel.
#[allow(unsafe_code)]
mod sys;
mod tls;
mod zero_copy;

pub use address::{Address, AddressError};
pub use connect::SocketTransport;
pub use listen::SocketListener;
pub use options::SocketOptions;
pub use stream::SocketStream;
pub use tls::{TlsClient, TlsError, TlsServer};
pub use zero_copy::ZeroCopyCounts;
