//! Prints the packets of one recorded channel, on the packet crate alone: `dissector <FILE>`.

use multifd_packet::{Geometry, Packet, Packets};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("dissector <FILE>")?;
    let bytes = std::fs::read(path)?;
    let geometry = Geometry::new(4096).map_err(|error| error.to_string())?;
    for message in Packets::new(&bytes, geometry) {
        let message = message.map_err(|error| error.to_string())?;
        match message.packet {
            Packet::Init(init) => println!("channel {} of VM {}", init.channel, init.uuid),
            Packet::Ram(ram) if ram.fields().flags.is_sync() => {
                println!("packet {}: sync", ram.fields().packet_num);
            }
            Packet::Ram(ram) => println!(
                "packet {}: block {:?}, {}, {} pages, {} zero pages, {} bytes",
                ram.fields().packet_num,
                ram.fields().block,
                ram.fields().flags.compression(),
                ram.normal().len(),
                ram.zero().len(),
                message.payload.len()
            ),
            Packet::DeviceState(state) => {
                println!(
                    "device state of {:?}, {} bytes",
                    state.idstr, state.payload_len
                );
            }
            _ => println!("a kind of packet that came later than this program"),
        }
    }
    Ok(())
}
