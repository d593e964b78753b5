#![doc = include_str!("../README.md")]
#![no_std]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
extern crate std;

#[cfg(feature = "checksum")]
mod checksum;
mod compression;
mod device_state;
mod error;
mod flags;
mod header;
mod init;
mod mapped_ram;
mod name;
#[cfg(feature = "std")]
mod placed;
mod ram;
mod stream;
mod uuid;

#[cfg(feature = "checksum")]
pub use checksum::Seal;
pub use compression::{Compression, PrivateCode, UnknownName};
pub use device_state::{DEVICE_STATE_PACKET_LEN, DeviceStateFields, DeviceStatePacket};
pub use error::{Field, PacketError};
pub use flags::Flags;
pub use header::{Greeting, HEADER_LEN, Header, MAGIC, MAIN_MAGIC, VERSION};
pub use init::{INIT_PACKET_LEN, InitPacket};
pub use mapped_ram::{
    Bitmap, MAPPED_RAM_HEADER_LEN, MappedRamHeader, MappedRamLayout, PAGES_ALIGN,
};
pub use name::NAME_LEN;
#[cfg(feature = "std")]
pub use placed::PlacedBlock;
pub use ram::{Geometry, MAX_RAM_PACKET_LEN, Offsets, RAM_PACKET_FIXED_LEN, RamFields, RamPacket};
pub use stream::{Message, Packet, Packets};
pub use uuid::{Uuid, UuidError};
