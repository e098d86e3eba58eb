//! Quantities of resources, as Kubernetes writes them: `500m`, `2`, `512Mi`, `1.5Gi`
//! (`k8s.io/apimachinery/pkg/api/resource/quantity.go`).

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many of the smallest unit (10⁻⁹) are one.
const ONE: i128 = 1_000_000_000;

/// The suffixes of powers of 1000, from the smallest unit up.
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

/// The suffixes of powers of 1024, from 1024 up.
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// The most characters of a quantity in a request.
const MAX_CHARACTERS: usize = 24;

/// An amount of a resource, compared by its value: `1000m` is `1`. It is written as the API server stores it, so that
/// what is sent is what is read back.
#[derive(Clone, Copy, Debug, Default, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend(
    "minLength" = 1,
    "maxLength" = 24,
    "pattern" = r"^[0-9]+(\.[0-9]+)?([mkMGTPE]|[KMGTPE]i)?$",
    "not" = { "pattern": "^[0.]+[a-zA-Z]*$" },
))]
pub struct Quantity {
    /// In units of 10⁻⁹.
    nano: i128,
    /// Whether it is written with a power of 1024.
    is_binary: bool,
}

impl Quantity {
    /// The quantity that the cluster returned; none if it is no quantity.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (number, suffix) = number_and_suffix(text);
        let (factor, is_binary) = factor(suffix)?;
        let (negative, digits) = match number.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all = [whole, fraction].concat();
        if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let places = u32::try_from(fraction.len()).ok()?;
        let scaled = all.parse::<i128>().ok()?.checked_mul(factor)?;
        let divisor = 10_i128.checked_pow(places)?;
        // The API server rounds up, away from 0.
        let nano = scaled.checked_add(divisor - 1)? / divisor;
        Some(Quantity { nano: if negative { -nano } else { nano }, is_binary })
    }

    /// Whether it is a whole number of thousandths, as CPU is counted.
    pub(crate) fn is_in_thousandths(self) -> bool {
        self.nano % (ONE / 1000) == 0
    }

    /// Whether it is a whole number, as bytes are counted.
    pub(crate) fn is_whole(self) -> bool {
        self.nano % ONE == 0
    }

    /// The sum, as long as it can be represented. To 0 it is written as the other one.
    pub(crate) fn plus(self, other: Self) -> Self {
        let is_binary = if self.nano == 0 { other.is_binary } else { self.is_binary };
        Quantity { nano: self.nano.saturating_add(other.nano), is_binary }
    }

    /// The difference, as long as it can be represented.
    pub(crate) fn minus(self, other: Self) -> Self {
        Quantity { nano: self.nano.saturating_sub(other.nano), ..self }
    }

    /// So many times it, as long as that can be represented.
    pub(crate) fn times(self, factor: u64) -> Self {
        Quantity { nano: self.nano.saturating_mul(i128::from(factor)), ..self }
    }
}

fn number_and_suffix(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-'));
    text.split_at(end.unwrap_or(text.len()))
}

/// How many of the smallest unit one of this suffix is, and whether it is a power of 1024. An exponent (`1e3`) is a
/// suffix too.
fn factor(suffix: &str) -> Option<(i128, bool)> {
    if let Some(power) = BINARY.iter().position(|it| *it == suffix) {
        return Some((ONE << (10 * (power + 1)), true));
    }
    if let Some(power) = DECIMAL.iter().position(|it| *it == suffix) {
        return Some((10_i128.pow(3 * u32::try_from(power).ok()?), false));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = u32::try_from(exponent.checked_add(9)?).ok()?;
    Some((10_i128.checked_pow(power)?, false))
}

impl TryFrom<String> for Quantity {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        const HINT: &str = "must be a quantity above 0, for example 500m, 2, 512Mi or 1.5Gi";
        let (number, suffix) = number_and_suffix(&text);
        let has_digits = |end: Option<char>| end.is_some_and(|c| c.is_ascii_digit());
        let is_number = has_digits(number.chars().next()) && has_digits(number.chars().last());
        // Smaller units and exponents are for machines.
        let is_suffix = BINARY.contains(&suffix) || DECIMAL[2..].contains(&suffix);
        let is_plain = is_number && is_suffix && text.len() <= MAX_CHARACTERS;
        let read = is_plain.then(|| Quantity::read(&text)).flatten();
        // The API server keeps at most 2⁶³ - 1.
        let fits = |it: &Quantity| it.nano > 0 && it.nano <= i128::from(i64::MAX) * ONE;
        read.filter(fits).ok_or_else(|| HINT.to_owned())
    }
}

impl From<Quantity> for String {
    fn from(quantity: Quantity) -> Self {
        quantity.to_string()
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl fmt::Display for Quantity {
    /// In the canonical form: no fraction, and the largest suffix that leaves none. A fraction or a number below 1024
    /// loses a binary suffix (`CanonicalizeBytes`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (base, suffixes, mut number) = match self.is_binary && self.is_whole() {
            true if (self.nano / ONE).abs() >= 1024 => {
                (1024, &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][..], self.nano / ONE)
            }
            _ => (1000, &DECIMAL[..], self.nano),
        };
        if number == 0 {
            return f.write_str("0");
        }
        let mut power = 0;
        while number % base == 0 && power + 1 < suffixes.len() {
            number /= base;
            power += 1;
        }
        write!(f, "{number}{}", suffixes[power])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Quantity {
        Quantity::read(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn a_quantity_is_written_as_the_api_server_stores_it() {
        for (text, stored) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1500m", "1500m"),
            ("2000", "2k"),
            ("100000", "100k"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("512Mi", "512Mi"),
            ("128974848", "128974848"),
            ("129M", "129M"),
            ("0.5Ki", "512"),
            ("1.0009765625Ki", "1025"),
            ("0.0001Ki", "102400u"),
            ("1e3", "1k"),
            ("12E2", "1200"),
            ("1e-3", "1m"),
            ("0.0000000001", "1n"),
            ("0", "0"),
            ("-2Ki", "-2Ki"),
        ] {
            assert_eq!(read(text).to_string(), stored, "{text}");
        }
        for text in ["", "Mi", "1Mb", "1.2.3", "--1", "1e", "e3", "1 Gi", "١"] {
            assert_eq!(Quantity::read(text), None, "{text}");
        }
    }

    #[test]
    fn quantities_are_compared_by_value() {
        assert_eq!(read("1000m"), read("1"));
        assert_eq!(read("1Gi"), read("1073741824"));
        assert!(read("1G") < read("1Gi"));
        assert_eq!(read("1Gi").plus(read("512Mi")).to_string(), "1536Mi");
        assert_eq!(read("1").minus(read("250m")).to_string(), "750m");
        assert_eq!(read("300m").times(3).to_string(), "900m");
        assert!(read("1500m").is_in_thousandths() && !read("0.5m").is_in_thousandths());
        assert!(read("1Ki").is_whole() && !read("1500m").is_whole());
    }

    #[test]
    fn a_request_has_a_plain_quantity_above_0() {
        let schema = schemars::schema_for!(Quantity);
        let schema = jsonschema::validator_for(schema.as_value()).expect("is a schema");
        for text in ["500m", "2", "0.25", "512Mi", "1.5Gi", "129M", "1E", "1Ei"] {
            assert!(Quantity::try_from(text.to_owned()).is_ok(), "{text}");
            assert!(schema.is_valid(&text.into()), "{text}");
        }
        for text in [
            "", "0", "0Mi", "-1", "+1", "1e3", "1E3", "1n", "5u", ".5", "1.", "1.m", "9Ei", "Mi",
            "1 Gi",
        ] {
            assert!(Quantity::try_from(text.to_owned()).is_err(), "{text}");
            // A schema does not say how large a number is.
            assert!(!schema.is_valid(&text.into()) || text == "9Ei", "{text}");
        }
    }
}
