//! The receiving engine: one thread a channel, rounds joined by the client.

mod device_handlers;
mod packet_numbers;
mod receiver;
mod rounds;
mod shared;
mod worker;

pub use device_handlers::{DeviceHandlers, DeviceSink};
pub use receiver::{Gathering, Receiver, ReceiverConfig};
