//! Device sections cut apart: their bodies have no length on the wire, but QEMU's description adds up to it.

use crate::Tail;
use crate::sections::{EOF, FOOTER, FULL};
use serde::Deserialize;

/// One device section of a [`Tail`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSection {
    /// The section's name on the wire, such as `0000:00:01.0/piix3`.
    pub name: String,
    /// Which instance of it.
    pub instance: u32,
    /// The version of its layout.
    pub version: u32,
    /// Bytes of its body.
    pub size: u64,
}

impl Tail {
    /// The device sections in their order, if the description at the end is there and fits them byte for byte.
    pub fn sections(&self) -> Option<Vec<DeviceSection>> {
        let Description { devices } = serde_json::from_str(self.vmdesc()?).ok()?;
        let mut left = self.bytes();
        let mut sections = Vec::with_capacity(devices.len());
        for device in &devices {
            let size = device.size()?;
            let [kind] = take(&mut left)?;
            let id = take::<4>(&mut left)?;
            let [len] = take(&mut left)?;
            let name = left.split_off(..usize::from(len))?;
            let instance = u32::from_be_bytes(take(&mut left)?);
            let version = u32::from_be_bytes(take(&mut left)?);
            left.split_off(..usize::try_from(size).ok()?)?;
            let [footer] = take(&mut left)?;
            if kind != FULL || footer != FOOTER || take::<4>(&mut left)? != id {
                return None;
            }
            sections.push(DeviceSection {
                name: String::from_utf8_lossy(name).into_owned(),
                instance,
                version,
                size,
            });
        }
        (left.first() == Some(&EOF)).then_some(sections)
    }
}

fn take<const N: usize>(left: &mut &[u8]) -> Option<[u8; N]> {
    let (now, rest) = left.split_first_chunk::<N>()?;
    *left = rest;
    Some(*now)
}

#[derive(Deserialize)]
struct Description {
    devices: Vec<Device>,
}

/// A device, or a subsection of one; what does not count is not kept.
#[derive(Deserialize)]
struct Device {
    #[serde(default)]
    vmsd_name: String,
    #[serde(default)]
    fields: Vec<Field>,
    #[serde(default)]
    subsections: Vec<Device>,
}

#[derive(Deserialize)]
struct Field {
    size: u64,
    #[serde(default = "one")]
    array_len: u64,
}

fn one() -> u64 {
    1
}

impl Device {
    /// Bytes of the body: the fields, and the subsections after them.
    fn size(&self) -> Option<u64> {
        let mut size = 0u64;
        for field in &self.fields {
            size = size.checked_add(field.size.checked_mul(field.array_len)?)?;
        }
        for subsection in &self.subsections {
            // Type byte, length byte, name, version.
            let name = subsection.vmsd_name.len() as u64;
            size = size.checked_add(6 + name)?.checked_add(subsection.size()?)?;
        }
        Some(size)
    }
}
