//! The fuzz targets: called by the fuzz crate, and by `tests/fuzz_targets.rs`.

use multifd_packet::*;

/// Reads an init packet.
pub fn init(data: &[u8]) {
    let _ = InitPacket::parse(data);
    let _ = Header::parse(data);
}

/// Reads a RAM packet: every view of an accepted one is used, and the promised rules must hold.
pub fn ram(data: &[u8]) {
    for page_size in [512, 4096, 65536, 524_288] {
        let geometry = Geometry::new(page_size).expect("a valid page size");
        let Ok(packet) = RamPacket::parse(data, geometry) else {
            continue;
        };
        assert!(
            packet.normal().len() + packet.zero().len() <= geometry.pages_per_packet() as usize
        );
        let mut pages = packet.normal().iter().chain(packet.zero().iter());
        assert!(pages.all(|offset| offset % u64::from(page_size) == 0));
        assert!(packet.fields().payload_len <= 1 << 20);
        assert_eq!(packet.normal().is_empty(), packet.fields().payload_len == 0);
        assert_eq!(packet.reserved().len(), 24);
    }
}

/// Reads a device-state packet.
pub fn device_state(data: &[u8]) {
    if let Ok(fields) = DeviceStatePacket::parse(data, 1 << 20) {
        assert!(!fields.idstr.is_empty() && fields.idstr.len() < NAME_LEN);
        assert!((1..=1 << 20).contains(&fields.payload_len));
    }
}

/// Reads a mapped-ram header, for a block length taken from the bytes after it, and a bitmap.
pub fn mapped_ram(data: &[u8]) {
    let Ok(header) = MappedRamHeader::parse(data) else {
        return;
    };
    let tail = &data[MAPPED_RAM_HEADER_LEN..];
    let Some(length) = tail.first_chunk::<8>() else {
        return;
    };
    if let Ok(layout) = MappedRamLayout::from_header(header, u64::from_be_bytes(*length)) {
        assert!(layout.header().bitmap_offset + layout.bitmap_len() <= header.pages_offset);
        assert!(layout.end() >= header.pages_offset);
    }
    let bitmap = Bitmap::new(tail);
    let counted = (0..tail.len() as u64 * 8 + 9)
        .filter(|&page| bitmap.contains(page))
        .count();
    assert_eq!(bitmap.count(), counted as u64);
}

/// Reads a channel, packet by packet: every byte is used once, and nothing is beyond the end.
pub fn packets(data: &[u8]) {
    let geometry = Geometry::new(4096).expect("a valid page size");
    let mut packets = Packets::new(data, geometry).max_device_state(1 << 20);
    let mut at = 0;
    while let Some(message) = packets.next() {
        let Ok(message) = message else {
            assert!(packets.next().is_none(), "nothing comes after an error");
            return;
        };
        assert_eq!(message.offset, at);
        at += message.bytes.len() + message.payload.len();
        assert_eq!(message.payload.len(), message.packet.payload_len());
        assert_eq!(packets.offset(), at);
        #[cfg(feature = "checksum")]
        if let Packet::Ram(_) = message.packet {
            // A checksum that is there is right, or an error; one that was written is right.
            let _ = Seal::verify(message.bytes);
            let mut sealed = message.bytes.to_vec();
            if Seal::write(&mut sealed, Some(7)).is_ok() {
                assert_eq!(Seal::verify(&sealed), Ok(Some(Seal { payload: Some(7) })));
            }
        }
    }
    assert_eq!(at, data.len());
}

/// encode(decode(x)): what was accepted is encoded again and reads the same.
pub fn reencode(data: &[u8]) {
    if let Ok(packet) = InitPacket::parse(data) {
        let mut out = [0; INIT_PACKET_LEN];
        packet
            .encode(&mut out)
            .expect("an accepted init packet encodes");
        assert_eq!(InitPacket::parse(&out), Ok(packet));
    }
    if let Ok(fields) = DeviceStatePacket::parse(data, u32::MAX) {
        let mut out = [0; DEVICE_STATE_PACKET_LEN];
        DeviceStatePacket::encode(&fields, &mut out)
            .expect("an accepted device-state packet encodes");
        assert_eq!(DeviceStatePacket::parse(&out, u32::MAX), Ok(fields));
    }
    if let Ok(header) = MappedRamHeader::parse(data) {
        let mut out = [0; MAPPED_RAM_HEADER_LEN];
        header
            .encode(&mut out)
            .expect("an accepted mapped-ram header encodes");
        assert_eq!(out, data[..MAPPED_RAM_HEADER_LEN]);
    }
    let geometry = Geometry::new(4096).expect("a valid page size");
    if let Ok(packet) = RamPacket::parse(data, geometry) {
        let normal: Vec<u64> = packet.normal().iter().collect();
        let zero: Vec<u64> = packet.zero().iter().collect();
        let mut out = vec![0xee; geometry.packet_len()];
        RamPacket::encode(packet.fields(), geometry, &normal, &zero, &mut out)
            .expect("an accepted RAM packet encodes");
        let again = RamPacket::parse(&out, geometry).expect("what was encoded is accepted");
        assert_eq!(again.fields(), packet.fields());
        assert!(again.normal().iter().eq(normal) && again.zero().iter().eq(zero));
    }
}
