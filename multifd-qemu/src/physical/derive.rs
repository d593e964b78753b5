//! A PC's memory, as its device state shows it: CMOS memory says how much lies below and above 4
//! GiB, the memory controller what can be read below 1 MiB.

use super::{LayoutError, PhysicalRange, plugged};
use crate::{DeviceState, Tail};

const MIB: u64 = 1 << 20;
const FOUR_GIB: u64 = 1 << 32;
/// Most RAM above 4 GiB that surely begins there. An AMD processor has a hole below 1 TiB, and
/// machines whose addresses would reach it, with room for hotplug, have that RAM above the hole.
const MAX_ABOVE: u64 = 256 << 30;
/// Below it, RAM can be read; then comes video memory.
const LOW_END: u64 = 0xa_0000;
/// From here to 1 MiB, RAM can be read where the memory controller says so.
const SHADOW: u64 = 0xc_0000;
/// The last 64 KiB of the shadow have one switch.
const LAST_SHADOW: u64 = 0xf_0000;
/// The others have one each.
const SHADOW_STEP: u64 = 0x4000;

pub(super) fn pc(
    machine: &str,
    blocks: &[(&str, u64)],
    tail: &Tail,
) -> Result<Vec<PhysicalRange>, LayoutError> {
    // The section of the memory controller, and where its seven shadow registers lie in its
    // configuration space.
    let (controller, registers) = if machine.starts_with("pc-i440fx-") {
        ("I440FX", 0x59)
    } else if machine.starts_with("pc-q35-") {
        ("mch", 0x90)
    } else {
        return Err(LayoutError::Unknown(format!(
            "{machine:?} is not a PC (pc-i440fx, pc-q35), whose device state tells"
        )));
    };
    let one = |name: &str| {
        let states = tail.states(name).unwrap_or_default();
        <[DeviceState; 1]>::try_from(states)
            .map(|[state]| state)
            .map_err(|_| {
                LayoutError::Unknown(format!(
                    "there is no section {name:?}, or it has no description"
                ))
            })
    };
    let (ram, len) = only_ram(blocks)?;
    let rtc = one("mc146818rtc")?;
    let (below, above) = rtc.field("cmos_data").and_then(sizes).ok_or_else(|| {
        LayoutError::Unknown("CMOS memory does not say how much RAM there is".into())
    })?;
    if below.checked_add(above) != Some(len) || below > FOUR_GIB {
        return Err(LayoutError::Unknown(format!(
            "CMOS memory speaks of {below:#x} bytes below 4 GiB and {above:#x} above, and RAM block {ram:?} has {len:#x}"
        )));
    }
    if above > MAX_ABOVE {
        return Err(LayoutError::Unknown(format!(
            "with {above:#x} bytes above 4 GiB, a machine with an AMD processor has them above 1 TiB"
        )));
    }
    let controller = one(controller)?;
    let config = controller
        .field("config[0]")
        .or_else(|| controller.field("config"));
    let pam: [u8; 7] = config
        .and_then(|config| config.get(registers..registers + 7)?.try_into().ok())
        .ok_or_else(|| {
            LayoutError::Unknown("the memory controller's registers are not there".into())
        })?;
    let mut ranges = Vec::new();
    let mut add = |address: u64, len: u64, block: &str, offset: u64| {
        ranges.push(PhysicalRange {
            address,
            len,
            block: block.into(),
            offset,
        });
    };
    add(0, below.min(LOW_END), ram, 0);
    for (start, end) in shadow(pam) {
        if end <= below {
            add(start, end - start, ram, start);
        }
    }
    if below > MIB {
        add(MIB, below - MIB, ram, MIB);
    }
    if let Some((bios, len)) = blocks
        .iter()
        .find(|(name, len)| *name == "pc.bios" && *len <= 16 * MIB)
    {
        add(FOUR_GIB - len, *len, bios, 0);
    }
    if above > 0 {
        add(FOUR_GIB, above, ram, below);
    }
    ranges.extend(plugged::all(blocks, tail)?);
    Ok(ranges)
}

/// The one block that can be RAM: the others belong to devices, or are firmware.
fn only_ram<'a>(blocks: &[(&'a str, u64)]) -> Result<(&'a str, u64), LayoutError> {
    let is_known = |name: &str| name.contains('/') || ["pc.bios", "pc.rom"].contains(&name);
    let mut candidates = blocks.iter().filter(|(name, _)| !is_known(name));
    match (candidates.next(), candidates.next()) {
        (Some(&ram), None) => Ok(ram),
        (None, _) => Err(LayoutError::Unknown(
            "no RAM block can be the machine's RAM".into(),
        )),
        (Some((one, _)), Some((other, _))) => Err(LayoutError::Unknown(format!(
            "it has several pieces of memory ({one:?}, {other:?})"
        ))),
    }
}

/// Bytes of RAM below and above 4 GiB, as QEMU's firmware is told.
fn sizes(cmos: &[u8]) -> Option<(u64, u64)> {
    let word = |at: usize| {
        Some(u64::from(u16::from_le_bytes([
            *cmos.get(at)?,
            *cmos.get(at + 1)?,
        ])))
    };
    let beyond_16_mib = word(0x34)? << 16;
    let below = if beyond_16_mib > 0 {
        16 * MIB + beyond_16_mib
    } else {
        MIB + (word(0x17)? << 10)
    };
    let above = (word(0x5b)? | u64::from(*cmos.get(0x5d)?) << 16) << 16;
    Some((below, above))
}

/// The ranges between 768 KiB and 1 MiB in which RAM is read. Of each register's nibbles, the lower
/// is the first's; bit 0 has RAM read.
fn shadow(pam: [u8; 7]) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    for number in 0..12u64 {
        let register = pam.get(1 + number as usize / 2).copied().unwrap_or(0);
        if register >> (number % 2 * 4) & 1 == 1 {
            let start = SHADOW + number * SHADOW_STEP;
            ranges.push((start, start + SHADOW_STEP));
        }
    }
    if pam[0] >> 4 & 1 == 1 {
        ranges.push((LAST_SHADOW, MIB));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cmos_says_what_lies_below_and_above_4_gib() {
        let mut cmos = [0; 128];
        cmos[0x17..0x19].copy_from_slice(&(15u16 << 10).to_le_bytes());
        assert_eq!(sizes(&cmos), Some((16 << 20, 0)));
        cmos[0x34..0x36].copy_from_slice(&0x7f00u16.to_le_bytes());
        assert_eq!(sizes(&cmos), Some((0x8000_0000, 0)));
        cmos[0x5b..0x5e].copy_from_slice(&[0x00, 0x80, 0x01]);
        assert_eq!(sizes(&cmos), Some((0x8000_0000, 0x1_8000_0000)));
        assert_eq!(sizes(&cmos[..0x5d]), None);
    }

    #[test]
    fn shadow_ram_is_read_where_the_registers_say_so() {
        assert_eq!(shadow([0; 7]), []);
        let all = shadow([0x10, 0x11, 0x33, 0x11, 0x11, 0x11, 0x11]);
        assert_eq!(all.len(), 13);
        assert_eq!(all[0], (0xc0000, 0xc4000));
        assert_eq!(all[12], (0xf0000, 0x10_0000));
        // Only written to: what is read is elsewhere.
        assert_eq!(shadow([0x20, 0x22, 0, 0, 0, 0, 0x10]), [(0xec000, 0xf0000)]);
    }

    #[test]
    fn several_pieces_of_memory_are_no_proof() {
        assert!(only_ram(&[("pc.ram", 1), ("pc.bios", 1), ("0000:00:02.0/vga.vram", 1)]).is_ok());
        assert!(only_ram(&[("n0", 1), ("n1", 1)]).is_err());
        assert!(only_ram(&[("pc.bios", 1)]).is_err());
    }
}
