//! TLS on connections: credentials as QEMU keeps them, and sessions.

#[cfg(not(feature = "tls"))]
mod absent;
#[cfg(feature = "tls")]
mod credentials;
mod encrypted;
mod outcome;
#[cfg(feature = "tls")]
mod session;

#[cfg(not(feature = "tls"))]
pub(crate) use absent::{Session, TlsClient};
#[cfg(feature = "tls")]
pub use credentials::{TlsClient, TlsError, TlsServer};
pub(crate) use outcome::{Cut, Received};
#[cfg(feature = "tls")]
pub(crate) use session::Session;
