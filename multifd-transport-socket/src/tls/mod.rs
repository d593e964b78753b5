//! TLS on connections: credentials as QEMU keeps them, and sessions.

mod credentials;
mod encrypted;
mod session;

pub use credentials::{TlsClient, TlsError, TlsServer};
pub(crate) use encrypted::Cut;
pub(crate) use session::{Received, Session};
