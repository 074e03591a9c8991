//! The table of known places: cloud regions of AWS, Azure and Google Cloud, and large cities.
//!
//! Coordinates are those of the metropolitan area, to about 0.01°: providers do not publish more, and 1 km is 0.01 ms.
//! Rows stand under their country, whose rough bounding box lets a test catch a slip in a row, cloud regions apart from
//! cities: people call a place by its city. Names are ASCII, so that they can stand in a header.

/// A place: name, latitude and longitude in degrees.
pub(super) type Row = (&'static str, f64, f64);

/// A country: name, its box as south, north, west and east in degrees; then the places in it. First cloud regions and
/// what providers call them after (`virginia`), then cities, with the small countries that are known by one name.
pub(super) type Country = (&'static str, [f64; 4], &'static [Row], &'static [Row]);

#[rustfmt::skip] // one place a line
pub(super) const COUNTRIES: &[Country] = &[
    ("United States", [18.5, 49.5, -161.0, -66.5], &[
        ("us-east-1", 39.04, -77.49),
        ("us-east-2", 39.96, -83.00),
        ("us-west-1", 37.35, -121.96),
        ("us-west-2", 45.84, -119.70),
        ("eastus", 37.37, -79.82),
        ("eastus2", 36.67, -78.39),
        ("centralus", 41.59, -93.62),
        ("northcentralus", 41.88, -87.63),
        ("southcentralus", 29.42, -98.49),
        ("westcentralus", 41.14, -104.82),
        ("westus", 37.78, -122.42),
        ("westus2", 47.23, -119.85),
        ("westus3", 33.45, -112.07),
        ("us-central1", 41.26, -95.86),
        ("us-east1", 33.20, -80.01),
        ("us-east4", 39.04, -77.49),
        ("us-east5", 39.96, -83.00),
        ("us-south1", 32.78, -96.80),
        ("us-west1", 45.60, -121.18),
        ("us-west2", 34.05, -118.24),
        ("us-west3", 40.76, -111.89),
        ("us-west4", 36.17, -115.14),
        ("virginia", 39.04, -77.49),
        ("ohio", 39.96, -83.00),
        ("oregon", 45.84, -119.70),
        ("california", 37.35, -121.96),
        ("iowa", 41.26, -95.86),
        ("south-carolina", 33.20, -80.01),
    ], &[
        ("new-york", 40.71, -74.01),
        ("boston", 42.36, -71.06),
        ("washington", 38.91, -77.04),
        ("ashburn", 39.04, -77.49),
        ("philadelphia", 39.95, -75.17),
        ("atlanta", 33.75, -84.39),
        ("miami", 25.76, -80.19),
        ("chicago", 41.88, -87.63),
        ("detroit", 42.33, -83.05),
        ("columbus", 39.96, -83.00),
        ("minneapolis", 44.98, -93.27),
        ("dallas", 32.78, -96.80),
        ("houston", 29.76, -95.37),
        ("denver", 39.74, -104.99),
        ("phoenix", 33.45, -112.07),
        ("salt-lake-city", 40.76, -111.89),
        ("las-vegas", 36.17, -115.14),
        ("los-angeles", 34.05, -118.24),
        ("san-diego", 32.72, -117.16),
        ("san-francisco", 37.77, -122.42),
        ("san-jose", 37.34, -121.89),
        ("portland", 45.52, -122.68),
        ("boardman", 45.84, -119.70),
        ("seattle", 47.61, -122.33),
        ("honolulu", 21.31, -157.86),
    ]),
    ("Canada", [41.9, 60.0, -135.0, -52.5], &[
        ("ca-central-1", 45.50, -73.57),
        ("ca-west-1", 51.05, -114.07),
        ("canadacentral", 43.65, -79.38),
        ("canadaeast", 46.81, -71.21),
        ("northamerica-northeast1", 45.50, -73.57),
        ("northamerica-northeast2", 43.65, -79.38),
    ], &[
        ("toronto", 43.65, -79.38),
        ("montreal", 45.50, -73.57),
        ("vancouver", 49.28, -123.12),
        ("calgary", 51.05, -114.07),
    ]),
    ("Mexico", [14.5, 32.8, -118.0, -86.5], &[
        ("mx-central-1", 20.59, -100.39),
        ("mexicocentral", 20.59, -100.39),
        ("northamerica-south1", 20.59, -100.39),
    ], &[
        ("mexico-city", 19.43, -99.13),
        ("queretaro", 20.59, -100.39),
        ("monterrey", 25.69, -100.32),
    ]),
    ("Guatemala", [13.5, 18.0, -92.5, -88.0], &[], &[
        ("guatemala-city", 14.63, -90.51),
    ]),
    ("Costa Rica", [8.0, 11.3, -86.0, -82.5], &[], &[
        ("costa-rica", 9.93, -84.08),
    ]),
    ("Panama", [7.0, 9.7, -83.1, -77.0], &[], &[
        ("panama-city", 8.98, -79.52),
    ]),
    ("Dominican Republic", [17.4, 20.0, -72.1, -68.2], &[], &[
        ("santo-domingo", 18.49, -69.93),
    ]),
    ("Puerto Rico", [17.8, 18.6, -67.4, -65.1], &[], &[
        ("san-juan", 18.47, -66.11),
    ]),
    ("Cuba", [19.7, 23.4, -85.0, -74.0], &[], &[
        ("havana", 23.11, -82.37),
    ]),
    ("Brazil", [-33.8, 5.3, -74.0, -34.7], &[
        ("sa-east-1", -23.55, -46.63),
        ("brazilsouth", -23.55, -46.63),
        ("brazilsoutheast", -22.91, -43.17),
        ("southamerica-east1", -23.55, -46.63),
    ], &[
        ("sao-paulo", -23.55, -46.63),
        ("rio-de-janeiro", -22.91, -43.17),
        ("brasilia", -15.79, -47.88),
        ("fortaleza", -3.73, -38.53),
        ("porto-alegre", -30.03, -51.23),
        ("manaus", -3.12, -60.02),
    ]),
    ("Argentina", [-55.1, -21.7, -73.6, -53.6], &[], &[
        ("buenos-aires", -34.60, -58.38),
        ("cordoba", -31.42, -64.18),
    ]),
    ("Chile", [-56.0, -17.4, -76.0, -66.4], &[
        ("southamerica-west1", -33.45, -70.67),
        ("chilecentral", -33.45, -70.67),
    ], &[
        ("santiago", -33.45, -70.67),
    ]),
    ("Uruguay", [-35.1, -30.0, -58.5, -53.0], &[], &[
        ("montevideo", -34.90, -56.16),
    ]),
    ("Paraguay", [-27.7, -19.2, -62.7, -54.2], &[], &[
        ("asuncion", -25.26, -57.58),
    ]),
    ("Bolivia", [-23.0, -9.6, -69.7, -57.4], &[], &[
        ("la-paz", -16.49, -68.12),
    ]),
    ("Peru", [-18.4, 0.0, -81.4, -68.6], &[], &[
        ("lima", -12.05, -77.04),
    ]),
    ("Ecuador", [-5.1, 1.5, -81.1, -75.1], &[], &[
        ("quito", -0.18, -78.47),
    ]),
    ("Colombia", [-4.3, 12.6, -79.1, -66.8], &[], &[
        ("bogota", 4.71, -74.07),
        ("medellin", 6.24, -75.58),
    ]),
    ("Venezuela", [0.6, 12.3, -73.4, -59.8], &[], &[
        ("caracas", 10.48, -66.90),
    ]),
    ("United Kingdom", [49.8, 61.0, -8.7, 1.9], &[
        ("eu-west-2", 51.51, -0.13),
        ("uksouth", 51.51, -0.13),
        ("ukwest", 51.48, -3.18),
        ("europe-west2", 51.51, -0.13),
    ], &[
        ("london", 51.51, -0.13),
        ("manchester", 53.48, -2.24),
        ("edinburgh", 55.95, -3.19),
    ]),
    ("Ireland", [51.3, 55.5, -10.7, -5.9], &[
        ("eu-west-1", 53.35, -6.26),
        ("northeurope", 53.35, -6.26),
        ("ireland", 53.35, -6.26),
    ], &[
        ("dublin", 53.35, -6.26),
    ]),
    ("France", [42.2, 51.2, -5.0, 8.3], &[
        ("eu-west-3", 48.86, 2.35),
        ("francecentral", 46.38, 2.37),
        ("francesouth", 43.30, 5.37),
        ("europe-west9", 48.86, 2.35),
    ], &[
        ("paris", 48.86, 2.35),
        ("marseille", 43.30, 5.37),
        ("lyon", 45.76, 4.84),
    ]),
    ("Germany", [47.2, 55.1, 5.8, 15.1], &[
        ("eu-central-1", 50.11, 8.68),
        ("germanywestcentral", 50.11, 8.68),
        ("germanynorth", 52.52, 13.41),
        ("europe-west3", 50.11, 8.68),
        ("europe-west10", 52.52, 13.41),
    ], &[
        ("frankfurt", 50.11, 8.68),
        ("berlin", 52.52, 13.41),
        ("munich", 48.14, 11.58),
        ("hamburg", 53.55, 9.99),
        ("dusseldorf", 51.23, 6.77),
        ("nuremberg", 49.45, 11.08),
    ]),
    ("Netherlands", [50.7, 53.6, 3.3, 7.3], &[
        ("westeurope", 52.37, 4.90),
        ("europe-west4", 53.44, 6.84),
    ], &[
        ("amsterdam", 52.37, 4.90),
        ("rotterdam", 51.92, 4.48),
    ]),
    ("Belgium", [49.4, 51.6, 2.5, 6.5], &[
        ("europe-west1", 50.45, 3.82),
        ("belgiumcentral", 50.85, 4.35),
    ], &[
        ("brussels", 50.85, 4.35),
    ]),
    ("Luxembourg", [49.4, 50.2, 5.7, 6.6], &[], &[
        ("luxembourg", 49.61, 6.13),
    ]),
    ("Switzerland", [45.8, 47.9, 5.9, 10.5], &[
        ("eu-central-2", 47.38, 8.54),
        ("switzerlandnorth", 47.45, 8.56),
        ("switzerlandwest", 46.20, 6.14),
        ("europe-west6", 47.38, 8.54),
    ], &[
        ("zurich", 47.38, 8.54),
        ("geneva", 46.20, 6.14),
    ]),
    ("Austria", [46.3, 49.1, 9.5, 17.2], &[
        ("austriaeast", 48.21, 16.37),
    ], &[
        ("vienna", 48.21, 16.37),
    ]),
    ("Italy", [36.6, 47.1, 6.6, 18.6], &[
        ("eu-south-1", 45.46, 9.19),
        ("italynorth", 45.46, 9.19),
        ("europe-west8", 45.46, 9.19),
        ("europe-west12", 45.07, 7.69),
    ], &[
        ("milan", 45.46, 9.19),
        ("rome", 41.90, 12.50),
        ("turin", 45.07, 7.69),
        ("palermo", 38.12, 13.36),
    ]),
    ("Spain", [35.9, 43.9, -9.4, 4.4], &[
        ("eu-south-2", 41.65, -0.89),
        ("spaincentral", 40.42, -3.70),
        ("europe-southwest1", 40.42, -3.70),
    ], &[
        ("madrid", 40.42, -3.70),
        ("barcelona", 41.39, 2.17),
        ("zaragoza", 41.65, -0.89),
    ]),
    ("Portugal", [36.9, 42.2, -9.6, -6.1], &[], &[
        ("lisbon", 38.72, -9.14),
        ("porto", 41.15, -8.61),
    ]),
    ("Sweden", [55.3, 69.1, 11.0, 24.2], &[
        ("eu-north-1", 59.33, 18.07),
        ("swedencentral", 60.67, 17.14),
        ("europe-north2", 59.33, 18.07),
    ], &[
        ("stockholm", 59.33, 18.07),
        ("gothenburg", 57.71, 11.97),
    ]),
    ("Norway", [57.9, 71.2, 4.6, 31.1], &[
        ("norwayeast", 59.91, 10.75),
        ("norwaywest", 58.97, 5.73),
    ], &[
        ("oslo", 59.91, 10.75),
    ]),
    ("Denmark", [54.5, 57.8, 8.0, 15.2], &[
        ("denmarkeast", 55.68, 12.57),
    ], &[
        ("copenhagen", 55.68, 12.57),
    ]),
    ("Finland", [59.7, 70.1, 20.5, 31.6], &[
        ("europe-north1", 60.57, 27.19),
    ], &[
        ("helsinki", 60.17, 24.94),
    ]),
    ("Iceland", [63.3, 66.6, -24.6, -13.4], &[], &[
        ("reykjavik", 64.15, -21.94),
    ]),
    ("Estonia", [57.5, 59.7, 21.7, 28.2], &[], &[
        ("tallinn", 59.44, 24.75),
    ]),
    ("Latvia", [55.6, 58.1, 20.9, 28.3], &[], &[
        ("riga", 56.95, 24.11),
    ]),
    ("Lithuania", [53.9, 56.5, 20.9, 26.9], &[], &[
        ("vilnius", 54.69, 25.28),
    ]),
    ("Poland", [49.0, 54.9, 14.1, 24.2], &[
        ("polandcentral", 52.23, 21.01),
        ("europe-central2", 52.23, 21.01),
    ], &[
        ("warsaw", 52.23, 21.01),
        ("krakow", 50.06, 19.94),
    ]),
    ("Czechia", [48.5, 51.1, 12.1, 18.9], &[], &[
        ("prague", 50.08, 14.44),
    ]),
    ("Slovakia", [47.7, 49.7, 16.8, 22.6], &[], &[
        ("bratislava", 48.15, 17.11),
    ]),
    ("Hungary", [45.7, 48.6, 16.1, 22.9], &[], &[
        ("budapest", 47.50, 19.04),
    ]),
    ("Romania", [43.6, 48.3, 20.2, 29.8], &[], &[
        ("bucharest", 44.43, 26.10),
    ]),
    ("Bulgaria", [41.2, 44.3, 22.3, 28.7], &[], &[
        ("sofia", 42.70, 23.32),
    ]),
    ("Serbia", [42.2, 46.2, 18.8, 23.1], &[], &[
        ("belgrade", 44.79, 20.45),
    ]),
    ("Croatia", [42.3, 46.6, 13.4, 19.5], &[], &[
        ("zagreb", 45.81, 15.98),
    ]),
    ("Greece", [34.8, 41.8, 19.3, 28.3], &[], &[
        ("athens", 37.98, 23.73),
        ("thessaloniki", 40.64, 22.94),
    ]),
    ("Cyprus", [34.5, 35.8, 32.2, 34.7], &[], &[
        ("nicosia", 35.17, 33.36),
    ]),
    ("Ukraine", [44.3, 52.4, 22.1, 40.3], &[], &[
        ("kyiv", 50.45, 30.52),
        ("lviv", 49.84, 24.03),
    ]),
    ("Russia", [43.0, 70.0, 27.0, 140.0], &[], &[
        ("moscow", 55.76, 37.62),
        ("saint-petersburg", 59.93, 30.34),
        ("novosibirsk", 55.03, 82.92),
        ("vladivostok", 43.12, 131.89),
    ]),
    ("Turkey", [35.8, 42.2, 25.6, 44.9], &[], &[
        ("istanbul", 41.01, 28.98),
        ("ankara", 39.93, 32.86),
    ]),
    ("Israel", [29.4, 33.4, 34.2, 35.9], &[
        ("il-central-1", 32.09, 34.78),
        ("israelcentral", 32.09, 34.78),
        ("me-west1", 32.09, 34.78),
    ], &[
        ("tel-aviv", 32.09, 34.78),
    ]),
    ("Jordan", [29.1, 33.4, 34.9, 39.4], &[], &[
        ("amman", 31.95, 35.93),
    ]),
    ("Lebanon", [33.0, 34.7, 35.1, 36.7], &[], &[
        ("beirut", 33.89, 35.50),
    ]),
    ("Saudi Arabia", [16.3, 32.2, 34.5, 55.7], &[
        ("me-central2", 26.43, 50.10),
    ], &[
        ("riyadh", 24.71, 46.68),
        ("jeddah", 21.49, 39.19),
        ("dammam", 26.43, 50.10),
    ]),
    ("Bahrain", [25.5, 26.4, 50.3, 50.8], &[
        ("me-south-1", 26.07, 50.55),
    ], &[
        ("bahrain", 26.07, 50.55),
    ]),
    ("Qatar", [24.4, 26.2, 50.7, 51.7], &[
        ("qatarcentral", 25.29, 51.53),
        ("me-central1", 25.29, 51.53),
    ], &[
        ("doha", 25.29, 51.53),
    ]),
    ("United Arab Emirates", [22.6, 26.1, 51.4, 56.5], &[
        ("me-central-1", 24.45, 54.38),
        ("uaenorth", 25.27, 55.31),
        ("uaecentral", 24.45, 54.38),
    ], &[
        ("dubai", 25.27, 55.31),
        ("abu-dhabi", 24.45, 54.38),
    ]),
    ("Kuwait", [28.5, 30.1, 46.5, 48.5], &[], &[
        ("kuwait-city", 29.38, 47.98),
    ]),
    ("Oman", [16.6, 26.4, 52.0, 59.9], &[], &[
        ("muscat", 23.59, 58.41),
    ]),
    ("Iran", [25.0, 39.8, 44.0, 63.4], &[], &[
        ("tehran", 35.69, 51.39),
    ]),
    ("Iraq", [29.0, 37.4, 38.8, 48.6], &[], &[
        ("baghdad", 33.32, 44.36),
    ]),
    ("Georgia", [41.0, 43.6, 40.0, 46.8], &[], &[
        ("tbilisi", 41.72, 44.79),
    ]),
    ("Azerbaijan", [38.3, 41.9, 44.7, 50.7], &[], &[
        ("baku", 40.41, 49.87),
    ]),
    ("Kazakhstan", [40.5, 55.5, 46.5, 87.4], &[], &[
        ("almaty", 43.24, 76.89),
        ("astana", 51.17, 71.43),
    ]),
    ("Uzbekistan", [37.1, 45.6, 56.0, 73.2], &[], &[
        ("tashkent", 41.30, 69.24),
    ]),
    ("Pakistan", [23.6, 37.1, 60.8, 77.9], &[], &[
        ("karachi", 24.86, 67.00),
        ("lahore", 31.52, 74.36),
        ("islamabad", 33.68, 73.05),
    ]),
    ("India", [6.7, 35.6, 68.1, 97.4], &[
        ("ap-south-1", 19.08, 72.88),
        ("ap-south-2", 17.39, 78.49),
        ("centralindia", 18.52, 73.86),
        ("southindia", 13.08, 80.27),
        ("westindia", 19.08, 72.88),
        ("asia-south1", 19.08, 72.88),
        ("asia-south2", 28.70, 77.10),
    ], &[
        ("mumbai", 19.08, 72.88),
        ("delhi", 28.70, 77.10),
        ("bangalore", 12.97, 77.59),
        ("chennai", 13.08, 80.27),
        ("hyderabad", 17.39, 78.49),
        ("kolkata", 22.57, 88.36),
        ("pune", 18.52, 73.86),
    ]),
    ("Sri Lanka", [5.9, 9.9, 79.6, 81.9], &[], &[
        ("colombo", 6.93, 79.86),
    ]),
    ("Nepal", [26.3, 30.5, 80.0, 88.3], &[], &[
        ("kathmandu", 27.72, 85.32),
    ]),
    ("Bangladesh", [20.6, 26.7, 88.0, 92.7], &[], &[
        ("dhaka", 23.81, 90.41),
    ]),
    ("Myanmar", [9.7, 28.6, 92.1, 101.2], &[], &[
        ("yangon", 16.87, 96.20),
    ]),
    ("Thailand", [5.6, 20.5, 97.3, 105.7], &[
        ("ap-southeast-7", 13.76, 100.50),
    ], &[
        ("bangkok", 13.76, 100.50),
    ]),
    ("Vietnam", [8.4, 23.4, 102.1, 109.5], &[], &[
        ("hanoi", 21.03, 105.85),
        ("ho-chi-minh-city", 10.82, 106.63),
    ]),
    ("Cambodia", [10.3, 14.7, 102.3, 107.7], &[], &[
        ("phnom-penh", 11.56, 104.92),
    ]),
    ("Malaysia", [0.8, 7.4, 99.6, 119.3], &[
        ("ap-southeast-5", 3.139, 101.69),
        ("malaysiawest", 3.139, 101.69),
    ], &[
        ("kuala-lumpur", 3.139, 101.69),
        ("johor-bahru", 1.49, 103.74),
    ]),
    ("Singapore", [1.1, 1.5, 103.6, 104.1], &[
        ("ap-southeast-1", 1.35, 103.82),
        ("southeastasia", 1.35, 103.82),
        ("asia-southeast1", 1.35, 103.82),
    ], &[
        ("singapore", 1.35, 103.82),
    ]),
    ("Indonesia", [-11.0, 6.1, 95.0, 141.1], &[
        ("ap-southeast-3", -6.21, 106.85),
        ("indonesiacentral", -6.21, 106.85),
        ("asia-southeast2", -6.21, 106.85),
    ], &[
        ("jakarta", -6.21, 106.85),
        ("surabaya", -7.26, 112.75),
    ]),
    ("Philippines", [4.6, 21.2, 116.9, 126.7], &[], &[
        ("manila", 14.60, 120.98),
        ("cebu", 10.32, 123.89),
    ]),
    ("China", [18.0, 53.6, 73.5, 134.8], &[
        ("cn-north-1", 39.90, 116.41),
        ("cn-northwest-1", 37.51, 105.20),
        ("chinaeast", 31.23, 121.47),
        ("chinanorth", 39.90, 116.41),
    ], &[
        ("beijing", 39.90, 116.41),
        ("shanghai", 31.23, 121.47),
        ("guangzhou", 23.13, 113.26),
        ("shenzhen", 22.54, 114.06),
        ("chengdu", 30.57, 104.07),
    ]),
    ("Hong Kong", [22.1, 22.6, 113.8, 114.5], &[
        ("ap-east-1", 22.32, 114.17),
        ("eastasia", 22.32, 114.17),
        ("asia-east2", 22.32, 114.17),
    ], &[
        ("hong-kong", 22.32, 114.17),
    ]),
    ("Taiwan", [21.8, 25.4, 119.9, 122.1], &[
        ("ap-east-2", 25.03, 121.57),
        ("asia-east1", 24.05, 120.52),
    ], &[
        ("taipei", 25.03, 121.57),
    ]),
    ("Japan", [24.0, 45.6, 122.9, 146.0], &[
        ("ap-northeast-1", 35.68, 139.69),
        ("ap-northeast-3", 34.69, 135.50),
        ("japaneast", 35.68, 139.77),
        ("japanwest", 34.69, 135.50),
        ("asia-northeast1", 35.68, 139.69),
        ("asia-northeast2", 34.69, 135.50),
    ], &[
        ("tokyo", 35.68, 139.69),
        ("osaka", 34.69, 135.50),
        ("fukuoka", 33.59, 130.40),
        ("sapporo", 43.06, 141.35),
    ]),
    ("South Korea", [33.0, 38.7, 124.5, 131.0], &[
        ("ap-northeast-2", 37.57, 126.98),
        ("koreacentral", 37.57, 126.98),
        ("koreasouth", 35.18, 129.08),
        ("asia-northeast3", 37.57, 126.98),
    ], &[
        ("seoul", 37.57, 126.98),
        ("busan", 35.18, 129.08),
    ]),
    ("Mongolia", [41.5, 52.2, 87.7, 120.0], &[], &[
        ("ulaanbaatar", 47.89, 106.91),
    ]),
    ("Australia", [-43.8, -10.0, 112.9, 153.7], &[
        ("ap-southeast-2", -33.87, 151.21),
        ("ap-southeast-4", -37.81, 144.96),
        ("australiaeast", -33.87, 151.21),
        ("australiasoutheast", -37.81, 144.96),
        ("australiacentral", -35.28, 149.13),
        ("australia-southeast1", -33.87, 151.21),
        ("australia-southeast2", -37.81, 144.96),
    ], &[
        ("sydney", -33.87, 151.21),
        ("melbourne", -37.81, 144.96),
        ("brisbane", -27.47, 153.03),
        ("perth", -31.95, 115.86),
        ("adelaide", -34.93, 138.60),
        ("canberra", -35.28, 149.13),
        ("darwin", -12.46, 130.84),
    ]),
    ("New Zealand", [-47.3, -34.3, 166.4, 178.6], &[
        ("ap-southeast-6", -36.85, 174.76),
        ("newzealandnorth", -36.85, 174.76),
    ], &[
        ("auckland", -36.85, 174.76),
        ("wellington", -41.29, 174.78),
        ("christchurch", -43.53, 172.64),
    ]),
    ("Fiji", [-19.3, -16.0, 176.9, 180.0], &[], &[
        ("suva", -18.14, 178.44),
    ]),
    ("Guam", [13.2, 13.7, 144.6, 145.0], &[], &[
        ("guam", 13.44, 144.79),
    ]),
    ("South Africa", [-34.9, -22.1, 16.4, 32.9], &[
        ("af-south-1", -33.93, 18.42),
        ("southafricanorth", -25.73, 28.22),
        ("southafricawest", -33.93, 18.42),
        ("africa-south1", -26.20, 28.05),
    ], &[
        ("johannesburg", -26.20, 28.05),
        ("cape-town", -33.93, 18.42),
        ("durban", -29.86, 31.02),
    ]),
    ("Kenya", [-4.8, 5.1, 33.9, 41.9], &[], &[
        ("nairobi", -1.29, 36.82),
        ("mombasa", -4.04, 39.67),
    ]),
    ("Nigeria", [4.2, 13.9, 2.6, 14.7], &[], &[
        ("lagos", 6.52, 3.38),
        ("abuja", 9.08, 7.40),
    ]),
    ("Ghana", [4.7, 11.2, -3.3, 1.2], &[], &[
        ("accra", 5.60, -0.19),
    ]),
    ("Senegal", [12.3, 16.7, -17.6, -11.3], &[], &[
        ("dakar", 14.72, -17.47),
    ]),
    ("Ivory Coast", [4.3, 10.8, -8.6, -2.4], &[], &[
        ("abidjan", 5.36, -4.01),
    ]),
    ("Egypt", [21.9, 31.7, 24.6, 36.9], &[], &[
        ("cairo", 30.04, 31.24),
        ("alexandria", 31.20, 29.92),
    ]),
    ("Morocco", [27.6, 36.0, -13.2, -1.0], &[], &[
        ("casablanca", 33.57, -7.59),
    ]),
    ("Algeria", [18.9, 37.2, -8.7, 12.0], &[], &[
        ("algiers", 36.75, 3.06),
    ]),
    ("Tunisia", [30.2, 37.6, 7.5, 11.6], &[], &[
        ("tunis", 36.81, 10.18),
    ]),
    ("Ethiopia", [3.4, 14.9, 32.9, 48.0], &[], &[
        ("addis-ababa", 9.03, 38.74),
    ]),
    ("Uganda", [-1.5, 4.3, 29.5, 35.1], &[], &[
        ("kampala", 0.35, 32.58),
    ]),
    ("Tanzania", [-11.8, -0.9, 29.3, 40.5], &[], &[
        ("dar-es-salaam", -6.79, 39.21),
    ]),
    ("Rwanda", [-2.9, -1.0, 28.8, 30.9], &[], &[
        ("kigali", -1.94, 30.06),
    ]),
    ("Angola", [-18.1, -4.3, 11.6, 24.1], &[], &[
        ("luanda", -8.84, 13.23),
    ]),
    ("DR Congo", [-13.5, 5.4, 12.1, 31.4], &[], &[
        ("kinshasa", -4.44, 15.27),
    ]),
    ("Zimbabwe", [-22.5, -15.6, 25.2, 33.1], &[], &[
        ("harare", -17.83, 31.05),
    ]),
    ("Mauritius", [-20.6, -19.9, 57.2, 57.9], &[], &[
        ("mauritius", -20.16, 57.50),
    ]),
];
