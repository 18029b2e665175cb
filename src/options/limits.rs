//! Checks of single values, shared by the conversions.

use std::path::PathBuf;

use super::InvalidOption;

pub(super) fn no_nul(option: &'static str, text: &str) -> Result<(), InvalidOption> {
    if text.contains('\0') {
        return Err(InvalidOption::new(
            option,
            text,
            "has a NUL byte, which would cut it short in CRIU",
            "give it without the NUL byte",
        ));
    }
    Ok(())
}

/// A text that CRIU gets as it is.
pub(super) fn text(option: &'static str, text: String) -> Result<String, InvalidOption> {
    no_nul(option, &text)?;
    if text.is_empty() {
        return Err(InvalidOption::new(
            option,
            text,
            "is empty",
            "give a text, or leave the option out",
        ));
    }
    Ok(text)
}

/// A path that CRIU gets as it is, relative or not.
pub(super) fn any_path(option: &'static str, path: PathBuf) -> Result<String, InvalidOption> {
    let valid = path.into_os_string().into_string().map_err(|path| {
        InvalidOption::new(
            option,
            path.to_string_lossy(),
            "is not UTF-8, which CRIU's protocol demands of paths",
            "rename the file, or reach it through a symbolic link with such a name",
        )
    })?;
    text(option, valid)
}

/// An absolute path. CRIU changes into its work directory before it opens files, so a relative one would miss.
pub(super) fn path(option: &'static str, path: PathBuf) -> Result<String, InvalidOption> {
    let path = any_path(option, path)?;
    if !path.starts_with('/') {
        return Err(InvalidOption::new(
            option,
            path,
            "is not absolute",
            "give the path from the root on",
        ));
    }
    Ok(path)
}

/// A number between two bounds.
pub(super) fn range(
    option: &'static str,
    value: u64,
    least: u32,
    most: u32,
    remedy: &'static str,
) -> Result<u32, InvalidOption> {
    match u32::try_from(value) {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(InvalidOption::new(
            option,
            value.to_string(),
            "is out of range",
            remedy,
        )),
    }
}

/// A decimal number of digits only: no sign, no blank.
pub(super) fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

/// A hexadecimal number of digits only: no sign, no `0x`.
pub(super) fn hexadecimal(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        u64::from_str_radix(text, 16).ok()
    } else {
        None
    }
}
