CREATE ROLE shop LOGIN PASSWORD 'only-the-shop-knows';
CREATE DATABASE shop OWNER shop;
\connect shop
CREATE TABLE orders (id serial PRIMARY KEY, item text NOT NULL, price numeric NOT NULL);
INSERT INTO orders (item, price) VALUES ('lamp', 39.90), ('chair', 120.00), ('desk', 249.50);
ALTER TABLE orders OWNER TO shop;
