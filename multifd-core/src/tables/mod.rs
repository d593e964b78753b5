//! The tables that users fill: data handling, transport, destination, and the main connection.

pub(crate) mod destination;
pub(crate) mod device_buffer;
pub(crate) mod encode;
pub(crate) mod incoming;
pub(crate) mod main;
pub(crate) mod message;
pub(crate) mod method;
pub(crate) mod pages;
pub(crate) mod plain;
pub(crate) mod transport;
