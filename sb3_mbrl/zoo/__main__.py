from sb3_mbrl.zoo.command_line import main

if __name__ == "__main__":
    main()
