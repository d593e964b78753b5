#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
extern crate std;

#[cfg(feature = "checksum")]
mod checksum;
mod device_state;
mod error;
mod flags;
mod header;
mod init;
mod mapped_ram;
mod name;
mod ram;

#[cfg(feature = "checksum")]
pub use checksum::Seal;
pub use device_state::{DEVICE_STATE_PACKET_LEN, DeviceStateFields, DeviceStatePacket};
pub use error::{Field, PacketError};
pub use flags::{Flags, Method};
pub use header::{HEADER_LEN, Header, MAGIC, MAIN_MAGIC, VERSION};
pub use init::{INIT_PACKET_LEN, InitPacket};
pub use mapped_ram::{Bitmap, MAPPED_RAM_HEADER_LEN, MappedRamHeader, MappedRamLayout, PAGES_ALIGN};
pub use name::NAME_LEN;
pub use ram::{Geometry, MAX_RAM_PACKET_LEN, Offsets, RAM_PACKET_FIXED_LEN, RamFields, RamPacket};
