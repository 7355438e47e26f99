//! A date that templates may print.

/// A day of the Gregorian calendar, injected by the program; the library never asks the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    year: i32,
    month: u32,
    day: u32,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Date {
    /// A day of the years 1 to 9999; `None` if there is no such day.
    pub fn new(year: i32, month: u32, day: u32) -> Option<Self> {
        let valid = (1..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=n_days(year, month)).contains(&day);
        valid.then_some(Self { year, month, day })
    }

    /// Python's `strftime` at midnight of this day.
    pub(super) fn strftime(self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next();
            let is_bare = directive == Some('-');
            if is_bare {
                directive = chars.next();
            }
            let number = |value: u32, width: usize| {
                if is_bare { value.to_string() } else { format!("{value:0width$}") }
            };
            out.push_str(&match directive {
                Some('d') => number(self.day, 2),
                Some('m') => number(self.month, 2),
                Some('Y') => self.year.to_string(),
                Some('y') => number(self.year.rem_euclid(100) as u32, 2),
                Some('b' | 'h') => MONTHS[self.month as usize - 1][..3].to_owned(),
                Some('B') => MONTHS[self.month as usize - 1].to_owned(),
                Some('a') => DAYS[self.weekday()][..3].to_owned(),
                Some('A') => DAYS[self.weekday()].to_owned(),
                Some('w') => self.weekday().to_string(),
                Some('j') => number(self.day_of_year(), 3),
                Some('e') => format!("{:2}", self.day),
                Some('F') => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
                Some('H' | 'M' | 'S') => number(0, 2),
                Some('I') => "12".to_owned(),
                Some('p') => "AM".to_owned(),
                Some('%') => "%".to_owned(),
                other => {
                    let other = other.map(String::from).unwrap_or_default();
                    return Err(format!("strftime_now does not know `%{other}`"));
                }
            });
        }
        Ok(out)
    }

    fn day_of_year(self) -> u32 {
        (1..self.month).map(|month| n_days(self.year, month)).sum::<u32>() + self.day
    }

    /// 0 is Sunday.
    fn weekday(self) -> usize {
        let before = i64::from(self.year) - 1;
        let n_days = before * 365 + before / 4 - before / 100 + before / 400;
        // 1 January of the year 1 was a Monday.
        (n_days + i64::from(self.day_of_year())).rem_euclid(7) as usize
    }
}

fn n_days(year: i32, month: u32) -> u32 {
    let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_prints_as_python_does() {
        let date = Date::new(2024, 2, 29).unwrap();
        // datetime.date(2024, 2, 29).strftime(...)
        assert_eq!(
            date.strftime("%a %A %d %-d %b %B %Y %y %j %w").unwrap(),
            "Thu Thursday 29 29 Feb February 2024 24 060 4"
        );
        assert_eq!(Date::new(2000, 1, 1).unwrap().strftime("%A %-m").unwrap(), "Saturday 1");
        assert_eq!(Date::new(1970, 1, 1).unwrap().strftime("%a").unwrap(), "Thu");
        assert!(date.strftime("%Q").is_err());
        assert_eq!(Date::new(2023, 2, 29), None);
    }
}
