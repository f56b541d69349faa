# Generated from the .proto files by tools/generate_proto.py.
