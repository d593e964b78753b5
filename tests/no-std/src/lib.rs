//! A `no_std` user of `multifd-packet`: if that crate needed `std` or an allocator, this one would
//! not build for a target without them (CI builds it for one).
#![no_std]
#![forbid(unsafe_code)]

use multifd_packet::{Geometry, InitPacket, PacketError, RamPacket};

/// Channel number and count of pages named in the first RAM packet of a recorded channel.
///
/// # Errors
/// What the packet parsers refuse.
pub fn first_packet(channel: &[u8]) -> Result<(u8, usize), PacketError> {
    let init = InitPacket::parse(channel)?;
    let rest = channel
        .get(multifd_packet::INIT_PACKET_LEN..)
        .unwrap_or_default();
    let packet = RamPacket::parse(rest, Geometry::new(4096)?)?;
    Ok((init.channel, packet.normal().len() + packet.zero().len()))
}
